"""A training's checkpoints, as shares: every party writes its own, and all go on from the same one, bit for bit.

Bit for bit means with the same masks, since a truncation rounds by them. Masks of an interrupted training may be used
again only for the very same messages; so their keys come from the run's roots, which each party keeps with its
checkpoints, and from everything that the messages depend on: the configuration, the numbers' format, the program, what
each owner's data are, and the step. If one of these has changed at any party, or is another one at another party, the
run is refused before anything is computed. To refuse it is not too much: a checkpoint that another configuration wrote
would be other messages under the masks of the step that follows, once the first configuration came back.

| file in a process's folder | holds |
|---|---|
| roots.safetensors | the roots of this process's masks and of its parties' noise; digests of what must not change |
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
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from encml.errors import ConfigError, DataError, EncmlError, ProtocolError
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
_FACTS, _DIGESTS = 3, 5
"""Where in what a party says of itself that begins which decides what is computed, and its digests, of 2 words each."""
_ALIKE = {
    0: ("--fresh", "give it to all parties, or to none"),
    3: ("fraction_bits", "use the same cluster file at all"),
    4: ("comparison_bits", "use the same cluster file at all"),
    5: ("experiments or public data", "use the same file and the same --set at all, and the same public data"),
    7: ("versions of encml or PyTorch", "install the same at all"),
}


class Checkpoints:
    """The checkpoints of the parties that live in this process, in ``folder``.

    about: what is public and decides what the training does, its configuration above all. fresh: begin anew, whatever
    lies in the folder; all parties say so, or none. All parties make this together: 2 rounds, and 1 more where a run
    goes on. Raises ConfigError, at every party, where the parties are about to train something different, or a party
    does not have the files that the others go on with; DataError where an owner's data have changed since the run
    began; ConfigError for a damaged file.
    """

    def __init__(
        self, folder: Path, session: Session, parts: Mapping[int, Part], about: str, *, fresh: bool = False
    ) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_unfinished(folder)
        except OSError as error:
            raise EncmlError(f"{folder}: nothing can be kept here: {error.strerror}; choose another --output") from None
        self._folder, self._session = folder, session
        parties = session.parties
        stored = None if fresh else self._read_roots()
        newest = 0 if fresh else max(self._found(), default=0)
        row = [int(fresh), int(stored is not None), newest, session.fraction_bits, session.comparison_bits or 0]
        own = torch.cat([torch.tensor(row), _short(about), _short(_program()), _short(_platform())])
        told = parties.tell_all(own.repeat(parties.here, 1), "resume")
        facts = told[:, _FACTS:].contiguous()
        _check_alike(told)
        goes_on = bool(told[:, 1].all())
        noise = {rank: fresh_key() for rank in parties.local}
        if goes_on and stored is not None:
            if not torch.equal(stored["facts"], facts):
                raise ConfigError(
                    f"{folder}: {_what_changed(stored['facts'], facts)} changed since this run began: undo the change, "
                    "or start anew with --fresh at all parties"
                )
            try:
                parties.replace_roots(_keys(stored, "root"))
            except ProtocolError as error:
                raise ConfigError(f"{folder}: {error}; or start anew with --fresh at all parties") from None
            noise = _keys(stored, "noise")
        elif told[:, 2].any():
            lacking = ", ".join(str(rank) for rank in range(PARTIES) if not told[rank, 1])
            raise ConfigError(
                f"the others go on with a run of which party {lacking} has no files: give every party the folder that "
                "it began in, or start anew with --fresh at all parties"
            )
        roots = parties.roots
        digests = [digest(parts[rank], roots[(rank - 1) % PARTIES] + roots[rank]) for rank in parties.local]
        # Every run has a number of its own, so that two in one session, which have the same roots, have other masks.
        run = [_words(fresh_key()) if stored is None or not goes_on else stored["run"][rank] for rank in parties.local]
        told = parties.tell_all(
            torch.stack([torch.cat([_words(x), y]) for x, y in zip(digests, run, strict=True)]), "resume"
        )
        inputs, runs = told[:, : len(told[0]) - 2].contiguous(), told[:, len(told[0]) - 2 :].contiguous()
        if goes_on and stored is not None:
            if not torch.equal(stored["run"], runs):
                raise ConfigError(
                    f"{folder}: the parties go on from different runs: all need files of the same one; or start anew "
                    "with --fresh at all parties"
                )
            changed = [rank for rank in range(PARTIES) if not torch.equal(stored["inputs"][rank], inputs[rank])]
            if changed:
                raise DataError(
                    f"{folder}: the data of party {', '.join(map(str, changed))} have changed since this run began: "
                    "undo the change, or start anew with --fresh at all parties"
                )
        else:
            for path in self._found().values():
                path.unlink()
            kept = {f"root-{stream}": _tensor(key) for stream, key in roots.items()}
            kept |= {f"noise-{rank}": _tensor(key) for rank, key in noise.items()}
            write_file(folder / ROOTS, save({**kept, "inputs": inputs, "facts": facts, "run": runs}), private=True)
        self._context = hashlib.blake2b(_bytes(facts) + _bytes(inputs) + _bytes(runs)).digest()
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
        common = max(set(told[0]).intersection(*told[1:]) - {_NONE}, default=0)
        for step, path in self._found().items():
            # What others lack is written again, the same; it must not count among the last that are kept.
            if step > common:
                path.unlink(missing_ok=True)
        return common

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
        if not {"inputs", "facts", "run"} <= stored.keys():
            raise ConfigError(f"{path}: of another version of encml: start anew with --fresh")
        return stored


def _check_alike(told: Tensor) -> None:
    """Raise ConfigError, at every party, if what the parties said of themselves does not go together."""
    for place, (what, remedy) in _ALIKE.items():
        columns = told[:, place : place + (1 if place < _DIGESTS else 2)]
        if any(not torch.equal(columns[rank], columns[0]) for rank in range(1, PARTIES)):
            found = [str(int(row[0])) if place < _DIGESTS else _bytes(row).hex()[:12] for row in columns]
            listed = ", ".join(f"party {rank}: {value}" for rank, value in enumerate(found))
            raise ConfigError(f"the parties' {what} differ ({listed}): {remedy}")


def _what_changed(before: Tensor, now: Tensor) -> str:
    if before.shape != now.shape:
        return "the program"
    names = {_FACTS: "fraction_bits", _FACTS + 1: "comparison_bits", _DIGESTS: "the configuration or the public data"}
    names |= {_DIGESTS + 2: "encml's or PyTorch's code", _DIGESTS + 4: "Python, the libraries or the kind of machine"}
    places = [place + _FACTS for place in range(now.shape[1]) if not torch.equal(before[:, place], now[:, place])]
    found = dict.fromkeys(names[max(name for name in names if name <= place)] for place in places)
    return " and ".join(found) + " have"


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
    """What must be the same at all parties: PyTorch's version, and a digest over the package's own code."""
    code = hashlib.sha256()
    for path in sorted(_sources(files("encml")), key=lambda found: str(found)):
        code.update(path.read_bytes())
    return json.dumps([torch.__version__, code.hexdigest()])


def _platform() -> str:
    """What else runs, which may be another one at each party."""
    versions = [version(name) for name in ("numpy", "numba", "safetensors", "cryptography")]
    return json.dumps([platform.python_version(), platform.machine(), *versions])


def _short(text: str) -> Tensor:
    """A digest, int64 (2,)."""
    return _words(hashlib.blake2b(text.encode(), digest_size=16).digest())


def _sources(folder: Traversable) -> list[Traversable]:
    found: list[Traversable] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _sources(entry)
        elif entry.name.endswith(".py"):
            found.append(entry)
    return found
