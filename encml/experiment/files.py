"""Files that are there whole or not at all, whenever the process that writes them is stopped."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from encml.errors import EncmlError

PREFIX, SUFFIX = ".", ".new"
"""What an unfinished file's or folder's name starts and ends with."""


def write_file(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write ``content`` under a hidden name, force it to the disk, then give it its name, replacing an older file.

    private: nobody but its owner may read it. Raises EncmlError where the disk is full or the folder cannot be written.
    """
    hidden = _hidden(path)
    try:
        try:
            with hidden.open("xb") as file:
                if private:
                    os.fchmod(file.fileno(), 0o600)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            hidden.rename(path)
        finally:
            hidden.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Have ``fill`` write a folder under a hidden name, force its files to the disk, then give it its name.

    An older folder of that name is removed just before; in between there is none. Raises as ``write_file``.
    """
    hidden = _hidden(path)
    try:
        hidden.mkdir(mode=0o700)
        try:
            fill(hidden)
            for inner in hidden.iterdir():
                with inner.open("rb") as file:
                    os.fsync(file.fileno())
            _sync_folder(hidden)
            if path.exists():
                old = _hidden(path)
                path.rename(old)
                shutil.rmtree(old)
            hidden.rename(path)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None


def remove_unfinished(folder: Path) -> None:
    """Remove what an interrupted ``write_file`` or ``write_folder`` left in ``folder``."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _hidden(path: Path) -> Path:
    return path.with_name(f"{PREFIX}{path.name}.{secrets.token_hex(4)}{SUFFIX}")


def _sync_folder(folder: Path) -> None:
    """Names are on the disk only when their folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError) -> EncmlError:
    return EncmlError(f"{path}: cannot be written: {error.strerror or error}")
