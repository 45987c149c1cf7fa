"""A training's checkpoints, as shares: every party writes its own, and all go on from the same one, bit for bit.

Bit for bit means with the same masks, since a truncation rounds by them. Masks of an interrupted training may be used
again only for the very same messages; so their keys come from the run's roots, which each party keeps with its
checkpoints, and from everything that the messages depend on: the configuration, the program's own code, what each
owner's data are, and the step. If one of these is another one, the run is refused, or the masks are other ones.

| file in a process's folder | holds |
|---|---|
| roots.safetensors | the roots of this process's masks and of its parties' noise; digests of everybody's data |
| step-<n>.pt | its shares of weights and optimizer after n steps, and what has been revealed; the last two are kept |
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import platform
import re
import zipfile
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from encml.errors import ConfigError, DataError
from encml.experiment.files import remove_unfinished, write_file
from encml.experiment.training.owners import Part, digest
from encml.mpc.session import Session
from encml.net.transport import PARTIES
from encml.ring.prg import KEY_BYTES, fresh_key

ROOTS = "roots.safetensors"
KEPT = 2
"""So many checkpoints are kept: one party may have been stopped before it wrote what another already has."""
_NAME = re.compile(r"step-(\d+)\.pt")
_NONE = -1


class Checkpoints:
    """The checkpoints of the parties that live in this process, in ``folder``.

    about: what is public and decides what the training does, its configuration above all. All parties make this
    together: 2 rounds, and 1 more where a run goes on. Raises DataError where an owner's data have changed since the
    run began, ConfigError for a damaged file.
    """

    def __init__(self, folder: Path, session: Session, parts: Mapping[int, Part], about: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_unfinished(folder)
        self._folder, self._session = folder, session
        parties = session.parties
        stored = self._read_roots()
        noise = {rank: fresh_key() for rank in parties.local}
        told = parties.tell_all(torch.full((parties.here, 1), int(stored is not None)), "resume")
        goes_on = bool(told.all())
        if goes_on and stored is not None:
            parties.replace_roots(_keys(stored, "root"))
            noise = _keys(stored, "noise")
        roots = parties.roots
        own = [digest(parts[rank], roots[(rank - 1) % PARTIES] + roots[rank]) for rank in parties.local]
        inputs = parties.tell_all(torch.stack([_words(x) for x in own]), "resume")
        if goes_on and stored is not None:
            changed = [rank for rank in range(PARTIES) if not torch.equal(stored["inputs"][rank], inputs[rank])]
            if changed:
                raise DataError(
                    f"{folder}: the data of party {', '.join(map(str, changed))} have changed since this run began: "
                    "undo the change, or start anew with --fresh"
                )
        else:
            for path in self._found().values():
                path.unlink()
            kept = {f"root-{stream}": _tensor(key) for stream, key in roots.items()}
            kept |= {f"noise-{rank}": _tensor(key) for rank, key in noise.items()}
            write_file(folder / ROOTS, save({**kept, "inputs": inputs}), private=True)
        self._context = hashlib.blake2b(f"{about}\n{_program()}".encode() + _bytes(inputs)).digest()
        self._noise = [noise[rank] for rank in parties.local]

    def begin(self, phase: str) -> None:
        """Begin the masks of one phase of the run; the same phase of the same run has the same again."""
        self._session.rekey(self._context + phase.encode())

    @property
    def noise_keys(self) -> list[bytes]:
        """For each party in this process the key of its noise in this run: known to it alone, the same each time."""
        return [hashlib.blake2b(self._context, key=key, digest_size=KEY_BYTES).digest() for key in self._noise]

    def latest(self) -> int:
        """After how many steps all parties have a checkpoint; 0 for none. 1 round."""
        parties = self._session.parties
        own = sorted(self._found())[-KEPT:]
        row = torch.tensor([*own, *[_NONE] * (KEPT - len(own))])
        told = parties.tell_all(row.repeat(parties.here, 1), "resume").tolist()
        common = set(told[0]).intersection(*told[1:]) - {_NONE}
        return max(common, default=0)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write this process's shares after ``step`` steps; then the masks of the steps that follow begin.

        In one process a checkpoint holds all three shares: whoever has the file has the values.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_file(self._path(step), buffer.getvalue(), private=True)
        for old in sorted(self._found())[:-KEPT]:
            self._path(old).unlink(missing_ok=True)

    def load(self, step: int) -> dict[str, Any]:
        """What ``save`` wrote after ``step`` steps. Raises ConfigError for a damaged file."""
        try:
            with self._session:
                state: dict[str, Any] = torch.load(self._path(step), weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError) as error:
            raise ConfigError(
                f"{self._path(step)}: damaged ({type(error).__name__}): start anew with --fresh"
            ) from None
        return state

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step}.pt"

    def _found(self) -> dict[int, Path]:
        names = {path: _NAME.fullmatch(path.name) for path in self._folder.iterdir()}
        return {int(match[1]): path for path, match in names.items() if match}

    def _read_roots(self) -> dict[str, Tensor] | None:
        path = self._folder / ROOTS
        try:
            stored: dict[str, Tensor] = load_file(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: damaged ({type(error).__name__}): start anew with --fresh") from None
        return stored


def _keys(stored: Mapping[str, Tensor], kind: str) -> dict[int, bytes]:
    names = [name for name in stored if name.startswith(f"{kind}-")]
    return {int(name.removeprefix(f"{kind}-")): _bytes(stored[name]) for name in names}


def _tensor(key: bytes) -> Tensor:
    return torch.tensor(list(key), dtype=torch.uint8)


def _words(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.int64)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def _program() -> str:
    """What runs: the versions beneath, and a digest over the package's own code."""
    code = hashlib.sha256()
    for path in sorted(_sources(files("encml")), key=lambda found: str(found)):
        code.update(path.read_bytes())
    return json.dumps([torch.__version__, platform.python_version(), platform.machine(), code.hexdigest()])


def _sources(folder: Traversable) -> list[Traversable]:
    found: list[Traversable] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _sources(entry)
        elif entry.name.endswith(".py"):
            found.append(entry)
    return found
