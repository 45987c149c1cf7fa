"""The table of contents of the benchmark: every case, and choosing among them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from encml.bench.case import Case
from encml.bench.functions import FUNCTIONS
from encml.bench.networks import NETWORKS
from encml.bench.primitives import PRIMITIVES
from encml.errors import ConfigError

CASES: tuple[Case, ...] = (*PRIMITIVES, *FUNCTIONS, *NETWORKS)
BY_NAME = {case.name: case for case in CASES}


def choose(patterns: Sequence[str]) -> tuple[Case, ...]:
    """The cases whose name or group fits one of ``patterns`` ("matmul*", "functions"); all of them where none is given.

    Raises ConfigError for a pattern that fits nothing; it lists what there is.
    """
    if not patterns:
        return CASES
    for pattern in patterns:
        if not any(_fits(case, pattern) for case in CASES):
            raise ConfigError(f"--only {pattern}: no case is called that{_meant(pattern)}; there are:\n{listing()}")
    return tuple(case for case in CASES if any(_fits(case, pattern) for pattern in patterns))


def listing() -> str:
    """All names, one line a group."""
    groups = dict.fromkeys(case.group for case in CASES)
    names = {group: ", ".join(case.name for case in CASES if case.group == group) for group in groups}
    return "\n".join(f"  {group}: {found}" for group, found in names.items())


def _fits(case: Case, pattern: str) -> bool:
    return fnmatchcase(case.name, pattern) or fnmatchcase(case.group, pattern)


def _meant(pattern: str) -> str:
    close = get_close_matches(pattern, [*BY_NAME, *(case.group for case in CASES)], 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
