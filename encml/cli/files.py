"""The commands that need no PyTorch: ``check`` and ``version``."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

import typer

from encml.config import dump_yaml, load_experiment

_PACKAGES = ("encml", "torch", "opacus", "cryptography")


def check(config_file: Path, assignments: Sequence[str]) -> None:
    """Print the resolved configuration. Raises ConfigError for one that is wrong."""
    typer.echo(dump_yaml(load_experiment(config_file, assignments)), nl=False)


def version() -> None:
    """Print the versions of encml, Python and the packages that matter."""
    for name in _PACKAGES:
        try:
            typer.echo(f"{name} {installed(name)}")
        except PackageNotFoundError:
            typer.echo(f"{name} (not installed)")
    typer.echo(f"Python {platform.python_version()}")
