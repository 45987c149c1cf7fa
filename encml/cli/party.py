"""The command ``party``."""

from __future__ import annotations

from pathlib import Path

from encml.config import load_cluster
from encml.serving.server import run_party


def run(config_file: Path, rank: int) -> None:
    """Be party ``rank`` until SIGTERM or Ctrl-C. Raises EncmlError."""
    run_party(load_cluster(config_file), rank)
