"""The ``encml`` command."""

from encml.cli.app import main

__all__ = ["main"]
