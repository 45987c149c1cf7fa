"""What a module says it exports is there, sorted, and a package exports nothing by accident."""

from __future__ import annotations

import importlib
import pkgutil
import re
from types import ModuleType

import pytest

import encml

PUBLIC = {"CheckError", "Session", "SharedTensor", "UnsupportedOperation", "check", "profile", "share"}
"""Names that others rely on."""

# __main__ runs the command when it is imported.
NAMES = [
    "encml",
    *sorted(m.name for m in pkgutil.walk_packages(encml.__path__, "encml.") if not m.name.endswith("__main__")),
]


def order(name: str) -> tuple[int, list[tuple[int, int, str]]]:
    """isort's order: CONSTANTS, Classes, functions; within them natural (x9 before x10)."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    pieces = re.findall(r"\d+|\D+", name)
    return kind, [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in pieces]


def exported(module: ModuleType) -> list[str] | None:
    return getattr(module, "__all__", None)


@pytest.mark.parametrize("name", NAMES)
def test_all_is_true_and_sorted(name: str) -> None:
    module = importlib.import_module(name)
    names = exported(module)
    if names is None:
        return
    missing = [n for n in names if not hasattr(module, n)]
    assert missing == []
    assert list(names) == sorted(set(names), key=order)


@pytest.mark.parametrize("name", NAMES)
def test_packages_leak_nothing(name: str) -> None:
    """What a package's __init__ makes reachable is what it exports; its submodules aside."""
    module = importlib.import_module(name)
    if not hasattr(module, "__path__"):
        return
    public = {
        n
        for n, value in ((n, getattr(module, n)) for n in dir(module))
        if not n.startswith("_")
        and n != "annotations"
        and not (isinstance(value, ModuleType) and value.__name__ == f"{name}.{n}")
    }
    assert public == {n for n in exported(module) or () if not n.startswith("_")}


def test_the_names_that_others_rely_on() -> None:
    names = exported(encml)
    if names is None:  # as long as the package's front door is empty, the leak test above keeps it so
        return
    assert set(names) >= PUBLIC
