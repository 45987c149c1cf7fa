"""The models of one party: their shares on disk, and how many more requests each may answer.

Both survive a restart. The folder ``<store>/party-<rank>`` holds ``<name>.safetensors`` and, once the owner lets it
be asked, ``<name>.<id>.json``; nothing in it is ever half-written. A file comes there by an owner's upload, or from the
party itself (``install_file``), whether its server runs or not.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from encml.config.cluster import ClusterConfig
from encml.errors import ServingError
from encml.serving.model_store import PartyModel, check_model_name, load_party_file, write_whole
from encml.serving.separable import separable
from encml.serving.wire import ModelStatus, read_message

MAX_MODELS = 64

_log = logging.getLogger(__name__)


class UnknownModel(ServingError):
    """No model of that name here."""


class _Remaining(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    remaining: int | None = Field(ge=0)


class Model:
    """One model of this party, and its budget: ``remaining`` requests, None without a limit, 0 if it is not served."""

    def __init__(self, part: PartyModel, remaining: int | None = 0) -> None:
        self.part = part
        self.remaining = remaining
        self.separable = separable(part.graph)
        """Whether requests of several clients may be computed in one batch."""
        self.tag = int.from_bytes(bytes.fromhex(part.model_id)[:8], "little", signed=True)
        """The beginning of its id as an int64, by which parties tell each other which model they mean."""
        self.digests = part.digests
        """Of what this party holds alike with the one before it, and with the next one."""

    def __repr__(self) -> str:
        return f"Model({self.part!r}, remaining={self.remaining})"

    def status(self) -> ModelStatus:
        """What anybody of the cluster may know."""
        graph = self.part.graph
        return ModelStatus(
            name=self.part.name,
            model_id=self.part.model_id,
            remaining=self.remaining,
            input_shape=graph.input_shape,
            output_shape=graph.output_shape,
            fraction_bits=self.part.fraction_bits,
            input_range=graph.input_range,
        )


class Registry:
    """The models of party ``rank`` in ``folder``; used from any thread."""

    def __init__(self, folder: Path, rank: int, fraction_bits: int) -> None:
        self._folder = store_folder(folder, rank)
        self._rank = rank
        self._fraction_bits = fraction_bits
        self._lock = threading.Lock()
        self._models: dict[str, Model] = {}
        self._seen: dict[str, tuple[int, ...]] = {}
        """What tells each model's file from another of the same name, as last looked at."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(self._folder.glob(".incoming-*")):
            path.unlink(missing_ok=True)
        self.refresh()

    def refresh(self) -> None:
        """Take up the files that came into the folder since it was last looked at; wrong ones are left out.

        A file in place of another model's is not served before the owner says so.
        """
        with self._lock:
            for path in sorted(self._folder.glob("*.safetensors")):
                try:
                    stamp = _stamp(path)
                    if self._seen.get(path.stem) != stamp:
                        self._seen[path.stem] = stamp
                        self._take_up(path)
                except FileNotFoundError:
                    continue  # removed or replaced just now
                except ServingError as error:
                    _log.warning("party %d leaves out %s", self._rank, error)

    def _take_up(self, path: Path) -> None:
        part = load_for(path, self._rank, self._fraction_bits)
        if part.name != path.stem:
            raise ServingError(f"{path}: the file holds the model {part.name!r}; put it there with encml install")
        model = Model(part)
        model.remaining = self._read_remaining(model)
        old = self._models.get(part.name)
        if old is None and len(self._models) >= MAX_MODELS:
            raise ServingError(f"{path}: party {self._rank} holds {MAX_MODELS} models already; remove one first")
        self._models[part.name] = model
        if old is not None:
            old.remaining = 0
            if old.part.model_id != part.model_id:
                self._budget_file(old).unlink(missing_ok=True)

    def models(self) -> list[Model]:
        """All models, by name."""
        with self._lock:
            return [model for _, model in sorted(self._models.items())]

    def get(self, name: str) -> Model:
        """Raises UnknownModel for a name that is not there."""
        with self._lock:
            return self._get(name)

    def incoming(self) -> tuple[int, Path]:
        """A new file, open for writing, for an upload; ``install`` takes it over, or remove it."""
        handle, path = tempfile.mkstemp(prefix=".incoming-", dir=self._folder)
        return handle, Path(path)

    def install(self, path: Path, name: str) -> Model:
        """Check an uploaded file and put it in place of whatever had that name; not served yet.

        Raises ServingError where the file, its name, its rank or its precision is wrong.
        """
        check_model_name(name)
        part = load_for(path, self._rank, self._fraction_bits)
        if part.name != name:
            raise ServingError(f"the file holds the model {part.name!r}, expected {name!r}")
        model = Model(part)
        with self._lock:
            if name not in self._models and len(self._models) >= MAX_MODELS:
                raise ServingError(f"party {self._rank} holds {MAX_MODELS} models already; remove one first")
            with path.open("rb") as file:
                os.fsync(file.fileno())
            target = self._folder / f"{name}.safetensors"
            os.replace(path, target)
            self._seen[name] = _stamp(target)
            old = self._models.get(name)
            self._models[name] = model
            if old is not None:
                old.remaining = 0
                self._budget_file(old).unlink(missing_ok=True)
        return model

    def remove(self, name: str) -> None:
        """Forget a model and delete its shares. Raises UnknownModel for a name that is not there."""
        with self._lock:
            model = self._get(name)
            model.remaining = 0
            del self._models[name]
            self._seen.pop(name, None)
            (self._folder / f"{name}.safetensors").unlink(missing_ok=True)
            self._budget_file(model).unlink(missing_ok=True)

    def allow(self, name: str, remaining: int | None) -> Model:
        """Serve a model for so many requests (None: without a limit; 0: no more). Raises ServingError."""
        with self._lock:
            model = self._get(name)
            self._set(model, remaining)
            return model

    def spend(self, model: Model, requests: int) -> None:
        """Count requests that are about to be answered; before, so that no crash gives a request away."""
        with self._lock:
            if model.remaining is not None:
                self._set(model, max(0, model.remaining - requests))

    def lower(self, model: Model, remaining: int | None) -> None:
        """Take over another party's count of the same model if it is lower."""
        with self._lock:
            if remaining is not None and (model.remaining is None or remaining < model.remaining):
                self._set(model, remaining)

    def _get(self, name: str) -> Model:
        if name not in self._models:
            known = ", ".join(sorted(self._models)) or "none"
            raise UnknownModel(f"party {self._rank} has no model {name[:80]!r}; it has: {known}")
        return self._models[name]

    def _set(self, model: Model, remaining: int | None) -> None:
        model.remaining = remaining
        if self._models.get(model.part.name) is model:
            contents = _Remaining(remaining=remaining).model_dump_json().encode()
            write_whole(self._budget_file(model), contents, lasting=False)

    def _budget_file(self, model: Model) -> Path:
        return self._folder / f"{model.part.name}.{model.part.model_id}.json"

    def _read_remaining(self, model: Model) -> int | None:
        try:
            text = self._budget_file(model).read_bytes()
        except FileNotFoundError:
            return 0
        return read_message(_Remaining, text, str(self._budget_file(model))).remaining


def store_folder(store: Path, rank: int) -> Path:
    """Where party ``rank`` keeps its models."""
    return store / f"party-{rank}"


def load_for(path: Path, rank: int, fraction_bits: int) -> PartyModel:
    """Read a file that is to be served by party ``rank`` of a cluster of such a precision. Raises ServingError."""
    part = load_party_file(path, rank)
    if part.fraction_bits != fraction_bits:
        raise ServingError(
            f"{part.name} has {part.fraction_bits} fraction bits and the cluster {fraction_bits}; share it with the "
            "cluster's number"
        )
    return part


def install_file(path: str | Path, config: ClusterConfig, rank: int, name: str | None = None) -> PartyModel:
    """Put a party's own file of a model into its own store, as ``name`` (default: the name in the file).

    The party's server, running or not, takes it up with the owner's next ``serve`` or ``status``; whether the three
    parties' files belong together is then checked among them. Returns what was installed. Raises ServingError where
    the file is malformed, another party's, or of another precision than the cluster.
    """
    part = load_for(Path(path), rank, config.fraction_bits)
    part = part if name is None else replace(part, name=name)
    check_model_name(part.name)
    folder = store_folder(config.store, rank)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part.save(folder / f"{part.name}.safetensors")
    return part


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
