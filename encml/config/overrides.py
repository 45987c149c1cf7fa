"""Changing single keys of a configuration from the command line: ``--set federated.rounds=3``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from encml.config.loading import Config, check, parse_value
from encml.errors import ConfigError

C = TypeVar("C", bound=Config)


def with_overrides(config: C, assignments: Sequence[str]) -> C:
    """``config`` with each ``dotted.key=value`` of ``assignments`` applied, in order, and the whole checked again.

    Values are YAML, so a section can be replaced as a whole: ``privacy={unit: none}``. Raises ConfigError, naming the
    assignment, for one that is malformed, names an unknown key or does not fit the rest.
    """
    if not assignments:
        return config
    values = json.loads(config.model_dump_json(exclude_unset=True))
    for assignment in assignments:
        _assign(values, assignment)
    return check(values, type(config), " ".join(f"--set {assignment}" for assignment in assignments))


def _assign(values: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    steps = key.strip().split(".")
    if not equals or not all(steps):
        raise ConfigError(f"--set {assignment}: expected key=value, such as federated.rounds=3")
    try:
        value = parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"--set {assignment}: {error}") from None
    section = values
    for depth, step in enumerate(steps[:-1]):
        inner = section.setdefault(step, {})
        if not isinstance(inner, dict):
            place = ".".join(steps[: depth + 1])
            raise ConfigError(f"--set {assignment}: {place} is a single value ({inner!r}), not a section with keys")
        section = inner
    section[steps[-1]] = value
