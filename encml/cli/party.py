"""The commands of a party: ``party`` and ``install``."""

from __future__ import annotations

from pathlib import Path

import typer

from encml.config import load_cluster
from encml.serving import install_file
from encml.serving.server import run_party


def run(config_file: Path, rank: int) -> None:
    """Be party ``rank`` until SIGTERM or Ctrl-C. Raises EncmlError."""
    run_party(load_cluster(config_file), rank)


def install(file: Path, config_file: Path, rank: int, model: str | None) -> None:
    """Put party ``rank``'s own file of a model into its store. Raises EncmlError."""
    part = install_file(file, load_cluster(config_file), rank, model)
    typer.echo(f"Party {rank} has {part.name!r} of the sharing {part.model_id[:8]}.")
