"""Imports inside the package go strictly downward, stand at the top of the file, and are absolute."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "encml"

# Each room may import itself and the floors before its own; rooms on one floor do not see each other.
FLOORS = (
    ("errors",),
    ("config", "data", "models"),
    ("ring",),
    ("net",),
    ("mpc",),
    ("tensor",),
    ("optim",),
    ("inspect", "coverage"),
    ("privacy",),
    ("federated",),
    ("serving",),
    ("experiment",),
    ("bench",),
    ("cli",),
    ("__init__", "__main__"),
)
# The two topmost rooms may import all others, and do so by name and late: "encml --help" does not wait for PyTorch.
LATE = ("cli", "__init__")
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(tree: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Every import statement with each module it names, as far as it concerns this package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names if alias.name.split(".")[0] == "encml")
        elif isinstance(node, ast.ImportFrom) and node.module == "encml":
            yield from ((node, f"encml.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("encml."):
            yield node, str(node.module)


def faults(room: str, source: str) -> list[str]:
    """What is wrong with the imports of a file in ``room``."""
    tree = ast.parse(source)
    found = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            local = [node.lineno for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            found += [f"line {line}: import inside a function" for line in local]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"line {node.lineno}: relative import")
        called = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
        if called in ("__import__", "import_module") and room not in LATE:
            found.append(f"line {node.lineno}: import by name, which this test cannot follow")
    for node, module in imports(tree):
        parts = module.split(".")
        target = parts[1] if len(parts) > 1 else "__init__"
        if target not in FLOOR_OF:
            found.append(f"line {node.lineno}: {module} is in no room; import from the room that defines it")
        elif target != room and FLOOR_OF[target] >= FLOOR_OF[room]:
            found.append(f"line {node.lineno}: {room} imports {module}, which stands on a higher or the same floor")
    return found


def room_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    assert room_of(path) in FLOOR_OF, f"{path} is in a room that FLOORS does not list"
    assert faults(room_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("ring", "from encml.mpc.session import Session"),
        ("ring", "import encml.mpc"),
        ("ring", "from encml import mpc"),
        ("ring", "from encml import share"),
        ("ring", "import encml"),
        ("config", "from encml.data import load_mnist"),
        ("mpc", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from encml.tensor import SharedTensor"),
        ("mpc", "def f():\n    import json"),
        ("mpc", "class A:\n    async def f(self):\n        from encml.ring import fixed"),
        ("mpc", "from . import session"),
        ("mpc", "import importlib\nimportlib.import_module('encml.tensor')"),
        ("experiment", "from importlib import import_module\nimport_module('encml.cli')"),
        ("cli", "import encml.__main__"),
    ],
)
def test_faults_are_found(room: str, source: str) -> None:
    assert len(faults(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        (
            "mpc",
            "from encml.ring.fixed import encode\nfrom encml.mpc.parties import rows\nfrom encml.errors import X",
        ),
        ("__init__", "from encml.tensor import SharedTensor"),
        ("cli", "import torch\nfrom encml.experiment import run"),
        ("errors", "import importlib.util"),
        ("cli", "import importlib\nimportlib.import_module('encml.experiment')"),
    ],
)
def test_what_is_allowed_passes(room: str, source: str) -> None:
    assert faults(room, source) == []
