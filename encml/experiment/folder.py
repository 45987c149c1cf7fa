"""The folder of one run: what lies in it, who works in it, and how an interrupted run is found again.

| file | holds |
|---|---|
| config.yaml | the resolved configuration |
| run.json | when the run began, with which version and configuration |
| checkpoint.pt | federated: after every round model, optimizer, accountant, history; removed at the end |
| party-<i>/, in-process/ | encrypted training: what a party keeps, see ``encml.experiment.training.checkpoints`` |
| model/party-<i>.safetensors | the trained model's shares, one file a party |
| classified.safetensors | images of the private inference for the report, with labels and predictions |
| report.html | the report |
| metrics.json | every figure; written last, so a folder with it is finished |

Every file is written beside its place and then renamed (``encml.experiment.files``), and so is the folder itself.
One process at a time works in a folder: it holds a lock that the operating system releases even if it is killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import pickle
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from encml.config import AnyExperiment, dump_yaml, load_experiment
from encml.errors import ConfigError, EncmlError
from encml.experiment.files import remove_unfinished, write_file, write_folder

CONFIG, RUN, LOCK = "config.yaml", "run.json", "run.lock"
CHECKPOINT, METRICS, REPORT = "checkpoint.pt", "metrics.json", "report.html"
MODEL, CLASSIFIED = "model", "classified.safetensors"

_FRESH = ".new-"
_STALE_SECONDS = 60.0

_log = logging.getLogger(__name__)


class _Run(BaseModel):
    """run.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encml: str
    started: datetime
    digest: str


class RunFolder:
    """A run's folder, locked for this process until ``close``; make one with ``create``, ``resume`` or ``find``."""

    def __init__(self, path: Path, config: AnyExperiment, started: datetime, lock: BinaryIO) -> None:
        self.path = path
        self.config = config
        self.started = started
        self._lock = lock

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process work in the folder; idempotent."""
        self._lock.close()

    @classmethod
    def create(cls, config: AnyExperiment, version: str) -> RunFolder:
        """Make ``<output.folder>/<experiment>-<YYYYmmdd-HHMMSS>`` with its configuration in it; it appears complete.

        Raises EncmlError where that cannot be written.
        """
        base, started = config.output.folder, datetime.now(UTC)
        try:
            base.mkdir(parents=True, exist_ok=True)
            _sweep(base)
            fresh = Path(tempfile.mkdtemp(prefix=_FRESH, dir=base))
        except OSError as error:
            raise EncmlError(f"{base}: run folders cannot be made here: {error.strerror}; choose --output") from None
        lock = _lock(fresh)
        if lock is None:
            raise EncmlError(f"{fresh}: another process took over a folder just made; try again")
        write_file(fresh / CONFIG, dump_yaml(config).encode())
        run = _Run(encml=version, started=started, digest=digest(config))
        write_file(fresh / RUN, run.model_dump_json(indent=2).encode())
        path = _give_name(fresh, f"{config.experiment}-{started.astimezone():%Y%m%d-%H%M%S}")
        return cls(path, config, started, lock)

    @classmethod
    def resume(cls, path: Path, version: str) -> RunFolder:
        """Open an unfinished run's folder to go on with it.

        Raises ConfigError for a folder of no run, a finished run, one that another process works in, one of another
        version of encml, or one whose configuration was changed.
        """
        run, config = _read_run(path), read_config(path)
        if run.encml != version:
            raise ConfigError(f"{path}: this run was begun by encml {run.encml}, here is {version}: start anew")
        if run.digest != digest(config):
            raise ConfigError(f"{path / CONFIG}: changed after the run began: undo the change, or start anew")
        lock = _lock(path)
        if lock is None:
            raise ConfigError(f"{path}: another process is working on this run: let it end, or start anew")
        if (path / METRICS).exists():
            lock.close()
            raise ConfigError(f"{path}: this run is finished; see {path / REPORT}, or start anew with --fresh")
        remove_unfinished(path)
        return cls(path, config, run.started, lock)

    @classmethod
    def find(cls, config: AnyExperiment, version: str) -> RunFolder | None:
        """The latest unfinished run of this very configuration that nobody works on, opened; None if there is none."""
        wanted, candidates = digest(config), []
        for path in config.output.folder.glob(f"{config.experiment}-*"):
            if (path / METRICS).exists() or not (path / RUN).is_file():
                continue
            try:
                run = _read_run(path)
            except ConfigError as error:
                _log.warning("%s: ignored", error)
                continue
            if run.digest == wanted and run.encml == version:
                candidates.append((run.started, path))
        for _, path in sorted(candidates, reverse=True):
            try:
                return cls.resume(path, version)
            except ConfigError as error:
                _log.info("%s", error)
        return None

    # What lies in it -----------------------------------------------------------------------------------------------

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint: nested dicts and lists of tensors, numbers and text."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_file(self.path / CHECKPOINT, buffer.getvalue())

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, None before the first. Raises ConfigError for a damaged file."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as error:
            raise ConfigError(f"{path}: damaged ({type(error).__name__}): start anew with --fresh") from None
        return state

    def write(self, name: str, content: bytes) -> None:
        """Write one file of the folder, whole or not at all."""
        write_file(self.path / name, content)

    def write_model(self, fill: Callable[[Path], object]) -> None:
        """Have ``fill`` write the shares' files into a folder that then becomes ``model/``, readable by its owner."""
        write_folder(self.path / MODEL, fill)

    def finish(self, metrics: bytes) -> None:
        """Write metrics.json, which ends the run; the checkpoint, which holds the opened model, goes."""
        write_file(self.path / METRICS, metrics)
        (self.path / CHECKPOINT).unlink(missing_ok=True)


def digest(config: AnyExperiment) -> str:
    """What identifies an experiment: SHA-256 over its resolved configuration, the place of its results left out."""
    values = config.model_dump(mode="json", exclude={"output"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_config(path: Path) -> AnyExperiment:
    """The resolved configuration of the run in ``path``. Raises ConfigError."""
    _read_run(path)
    return load_experiment(path / CONFIG)


def _read_run(path: Path) -> _Run:
    try:
        return _Run.model_validate_json((path / RUN).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no run folder (it has no {RUN}); expected one that encml run made") from None
    except (OSError, ValidationError):
        raise ConfigError(f"{path / RUN}: damaged or unreadable") from None


def _lock(folder: Path) -> BinaryIO | None:
    """The open lock file of ``folder``, None where another process holds it."""
    file = (folder / LOCK).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _give_name(fresh: Path, name: str) -> Path:
    """Rename ``fresh`` to ``name``, or name-2, name-3, ... where a run of the same second has it."""
    for attempt in _names(fresh.parent / name):
        if attempt.exists():
            continue
        try:
            return fresh.rename(attempt)
        except OSError:
            if not attempt.exists():
                raise
    raise AssertionError("names never run out")


def _names(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1


def _sweep(base: Path) -> None:
    """Remove hidden folders whose process was killed before it named them."""
    for path in base.glob(f"{_FRESH}*"):
        try:
            if time.time() - path.stat().st_mtime < _STALE_SECONDS and not (path / LOCK).exists():
                continue  # just being made
            lock = _lock(path)
        except OSError:
            continue
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            lock.close()
