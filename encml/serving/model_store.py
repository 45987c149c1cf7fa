"""A model as shares, one file for each party: none of them, alone, says anything about the weights.

A file is in safetensors format: for every parameter the party's two shares, int64 (2, *shape), and as metadata the
graph, the fixed-point bits, the rank, the model's name and a random id that the three files of one sharing have in
common.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from encml.errors import ServingError
from encml.mpc.dealing import deal
from encml.net.transport import PARTIES
from encml.ring.fixed import DEFAULT_FRACTION_BITS, encode
from encml.serving.bounds import Range
from encml.serving.export import export_model
from encml.serving.graph import Graph

FORMAT = "encml-model-shares"
VERSION = "1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, repr=False)
class PartyModel:
    """What one party holds of a model: the public graph and its own two shares of every parameter."""

    name: str
    model_id: str
    rank: int
    fraction_bits: int
    graph: Graph
    tensors: Mapping[str, Tensor]

    def __repr__(self) -> str:
        return f"PartyModel({self.name!r}, rank={self.rank}, {len(self.tensors)} parameters)"

    @property
    def digests(self) -> tuple[bytes, bytes]:
        """SHA-256 of all that this party and the one before it hold alike, and of what it and the next one do.

        Each tells one of these two whether their files belong together, and nothing else.
        """
        public = f"{self.model_id} {self.fraction_bits} {self.graph.model_dump_json()}".encode()
        first, second = hashlib.sha256(public), hashlib.sha256(public)
        for _, shares in sorted(self.tensors.items()):
            first.update(shares[0].contiguous().numpy().data)
            second.update(shares[1].contiguous().numpy().data)
        return first.digest(), second.digest()

    def to_bytes(self) -> bytes:
        """The file's contents."""
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "model_id": self.model_id,
            "rank": str(self.rank),
            "fraction_bits": str(self.fraction_bits),
            "graph": self.graph.model_dump_json(),
        }
        contents: bytes = save(dict(self.tensors), metadata)
        return contents

    def save(self, path: Path) -> None:
        """Write the file whole or not at all, readable by its owner only."""
        write_whole(path, self.to_bytes())


def check_model_name(name: str) -> None:
    """Raise ServingError unless ``name`` can name a model, and a file, anywhere."""
    if not _NAME.fullmatch(name):
        raise ServingError(f"{name[:80]!r} cannot name a model: use up to 64 letters, digits, '_' and '-'")


def share_model(
    model: nn.Module,
    example: Tensor,
    name: str,
    fraction_bits: int = DEFAULT_FRACTION_BITS,
    input_range: Range | None = None,
) -> tuple[PartyModel, PartyModel, PartyModel]:
    """Deal a model to three parties; each result's shares are independent of the weights.

    ``example`` and ``input_range``: see ``export_model``.

    Raises UnsupportedOperation, InvalidTensor or ServingError (for the name).
    """
    check_model_name(name)
    graph, parameters = export_model(model, example, fraction_bits, input_range)
    model_id = secrets.token_hex(16)
    parcels = {key: deal(encode(value, fraction_bits)) for key, value in parameters.items()}
    zero, one, two = (
        PartyModel(
            name, model_id, rank, fraction_bits, graph, {key: dealt[rank].expand() for key, dealt in parcels.items()}
        )
        for rank in range(PARTIES)
    )
    return zero, one, two


def save_model_shares(
    model: nn.Module,
    example: Tensor,
    folder: str | Path,
    name: str = "model",
    fraction_bits: int = DEFAULT_FRACTION_BITS,
    input_range: Range | None = None,
) -> list[Path]:
    """Share a model into ``folder``/party-0.safetensors to party-2.safetensors and return these paths.

    ``example`` and ``input_range``: see ``export_model``.

    Each file goes to its party and to nobody else: two of them together are the model. Mode 0600.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [party_file(folder, rank) for rank in range(PARTIES)]
    for part, path in zip(share_model(model, example, name, fraction_bits, input_range), paths, strict=True):
        part.save(path)
    return paths


def party_file(folder: Path, rank: int) -> Path:
    """Where ``save_model_shares`` puts the file of party ``rank``."""
    return folder / f"party-{rank}.safetensors"


def load_party_file(path: str | Path, rank: int | None = None) -> PartyModel:
    """Read one party's file; it may come from outside. Raises ServingError, naming the file and what is wrong."""
    path = Path(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            part = _from_metadata(path, metadata)
            if rank is not None and part.rank != rank:
                raise ServingError(f"{path}: these are the shares of party {part.rank}, expected those of party {rank}")
            shapes = {parameter.name: (2, *parameter.shape) for parameter in part.graph.parameters}
            if set(file.keys()) != set(shapes):
                raise ServingError(f"{path}: holds other parameters than its graph names")
            tensors = {key: _checked(path, key, file.get_tensor(key), shape) for key, shape in shapes.items()}
    except FileNotFoundError:
        raise ServingError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ServingError(f"{path}: not a whole safetensors file: {reason}") from None
    return PartyModel(part.name, part.model_id, part.rank, part.fraction_bits, part.graph, tensors)


def load_model_shares(folder: str | Path) -> tuple[PartyModel, PartyModel, PartyModel]:
    """Read what ``save_model_shares`` or ``save_trained_shares`` wrote, to hand it to a cluster.

    Raises ServingError if files are missing, or do not belong together.
    """
    zero, one, two = (load_party_file(party_file(Path(folder), rank), rank) for rank in range(PARTIES))
    for part, following in ((zero, one), (one, two), (two, zero)):
        same = part.model_id == following.model_id and part.digests[1] == following.digests[0]
        if not same:
            raise ServingError(
                f"{folder}: the files of parties {part.rank} and {following.rank} come from different sharings; the "
                "three files of one model are needed"
            )
    return zero, one, two


def write_whole(path: Path, contents: bytes, *, lasting: bool = True) -> None:
    """Write a file of mode 0600 that is never seen half-written; ``lasting``: nor lost if the machine stops."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(contents)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _from_metadata(path: Path, metadata: Mapping[str, str]) -> PartyModel:
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise ServingError(f"{path}: not a file of model shares of this version of encml")
    name, model_id = metadata.get("name", ""), metadata.get("model_id", "")
    rank, bits = metadata.get("rank", ""), metadata.get("fraction_bits", "")
    if not _NAME.fullmatch(name) or not _ID.fullmatch(model_id):
        raise ServingError(f"{path}: the model's name or id is malformed")
    if rank not in ("0", "1", "2") or not (bits.isascii() and bits.isdigit() and len(bits) <= 2):
        raise ServingError(f"{path}: the rank or the number of fraction bits is malformed")
    try:
        graph = Graph.from_json(metadata.get("graph", ""))
    except ServingError as error:
        raise ServingError(f"{path}: {error}") from None
    return PartyModel(name, model_id, int(rank), int(bits), graph, {})


def _checked(path: Path, key: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tensor.dtype != torch.int64 or tuple(tensor.shape) != shape:
        found = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ServingError(f"{path}: {key} is {found}, expected torch.int64 {shape}")
    return tensor
