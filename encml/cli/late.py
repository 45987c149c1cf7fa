"""Running a command: its module is loaded only now, and its errors become a line on stderr and an exit code.

PyTorch and what stands on it take seconds to load, which ``encml --help`` or a mistyped option need not wait for. So
``encml.cli.app`` declares the commands and this module loads what one of them does when it is called.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from encml.errors import (
    ConfigError,
    DataError,
    EncmlError,
    InvalidTensor,
    PartyError,
    PrivacyError,
    ProtocolError,
    ServingError,
)

EXIT_CODES: tuple[tuple[type[EncmlError], int], ...] = (
    (ConfigError, 2),
    (DataError, 3),
    (InvalidTensor, 3),
    (PartyError, 4),
    (ProtocolError, 4),
    (ServingError, 4),
    (PrivacyError, 5),
    (EncmlError, 1),
)
"""The first class that fits an error gives the exit code; wrong usage is 2, as a wrong configuration is."""

INTERRUPTED, TERMINATED = 130, 143

error_console = Console(stderr=True)
"""Log and progress bars; they must share it, so that neither overwrites the other."""


class Settings:
    """What stands before the command's name."""

    debug = False
    verbose = False


def run_command(module: str, function: str, **arguments: Any) -> None:
    """Call ``function`` of ``encml.cli.<module>``; an EncmlError ends the process with a short message.

    Ctrl-C ends it with 130 and SIGTERM with 143, after everything has been closed on the way out.
    """
    with _logging(), _sigterm():
        try:
            getattr(importlib.import_module(f"encml.cli.{module}"), function)(**arguments)
        except EncmlError as error:
            if Settings.debug:
                raise
            typer.echo(f"encml: {error}", err=True)
            raise typer.Exit(exit_code(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read the output has enough of it; Python must not try to flush the rest.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


def exit_code(error: EncmlError) -> int:
    """The exit code that tells a script what kind of error it was."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


@contextmanager
def _sigterm() -> Iterator[None]:
    """SIGTERM leaves as an exception does, so that what is open is closed on the way."""

    def leave(*_: object) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _logging() -> Iterator[None]:
    """encml's log goes to stderr: coloured lines on a terminal, plain ones elsewhere."""
    handler: logging.Handler
    if error_console.is_terminal:
        handler = RichHandler(console=error_console, show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("encml")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # importing Opacus gives the root logger a handler of its own
    logger.setLevel(logging.DEBUG if Settings.verbose else logging.INFO)
    try:
        yield
    finally:
        level, logger.propagate = before
        logger.setLevel(level)
        logger.removeHandler(handler)
