"""Who owns which part of the data: cut up for an experiment, kept in a file for each owner, and shared by them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from encml.config.training import FeaturesAndLabels, JoinedColumns, JoinedRows, OneOwner, TrainingData
from encml.data import MnistData, to_float
from encml.data.mnist import CLASSES
from encml.errors import DataError
from encml.experiment.files import write_file
from encml.mpc.session import Session
from encml.net.transport import PARTIES
from encml.tensor import SharedTensor
from encml.tensor.joining import join_columns, join_rows

Part = Mapping[str, Tensor]
"""What one owner has: some of train_images and test_images, float32 (n, ...), and train_labels and test_labels, int64
(n,)."""

_IMAGE = (1, 28, 28)


@dataclass(frozen=True, slots=True)
class Rows:
    """Images (N, 1, 28, 28), labels as the loss takes them, and classes int64 (N,): shared, or plain where public."""

    images: Tensor
    labels: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.images)


def used_data(config: TrainingData, data: MnistData) -> MnistData:
    """The part of the data that the training uses. Raises DataError where there is less than it asks for."""
    found = {"train_images": len(data.train_labels), "test_images": len(data.test_labels)}
    for name, wanted in (("train_images", config.train_images), ("test_images", config.test_images)):
        if wanted is not None and wanted > found[name]:
            raise DataError(f"data.{name}: {wanted:,} wanted, but there are {found[name]:,} ({data.source})")
    train, test = slice(config.train_images), slice(config.test_images)
    return MnistData(
        data.train_images[train], data.train_labels[train], data.test_images[test], data.test_labels[test], data.source
    )


def cut(config: TrainingData, data: MnistData) -> Sequence[Part]:
    """What each of the three parties has, by rank. What is public everybody has."""
    whole: dict[str, Tensor] = {
        "train_images": to_float(data.train_images),
        "train_labels": data.train_labels,
        "test_images": to_float(data.test_images),
        "test_labels": data.test_labels,
    }
    owners = config.owners
    if isinstance(owners, OneOwner):
        parts = [whole if rank == owners.party else {} for rank in range(PARTIES)]
        if config.public != "nothing":
            everybody = {name: tensor for name, tensor in whole.items() if name.endswith(config.public)}
            parts = [{**everybody, **part} for part in parts]
        return parts
    if isinstance(owners, FeaturesAndLabels):
        images = {name: tensor for name, tensor in whole.items() if name.endswith("images")}
        labels = {name: tensor for name, tensor in whole.items() if name.endswith("labels")}
        return [{owners.features: images, owners.labels: labels}.get(rank, {}) for rank in range(PARTIES)]
    if isinstance(owners, JoinedRows):
        return [
            {name: tensor.tensor_split(PARTIES)[rank].contiguous() for name, tensor in whole.items()}
            for rank in range(PARTIES)
        ]
    columns = [
        {
            name: tensor.tensor_split(PARTIES, 2)[rank].flatten(1).contiguous()
            for name, tensor in whole.items()
            if name.endswith("images")
        }
        for rank in range(PARTIES)
    ]
    return [
        {**part, "train_labels": data.train_labels, "test_labels": data.test_labels} if rank == owners.labels else part
        for rank, part in enumerate(columns)
    ]


def owner_file(folder: Path, rank: int) -> Path:
    """Where the file of owner ``rank`` lies in ``folder``."""
    return folder / f"owner-{rank}.safetensors"


def write_part(path: Path, part: Part) -> None:
    """Write what one owner has, readable by its owner only."""
    write_file(path, save(dict(part)), private=True)


def read_part(path: Path) -> dict[str, Tensor]:
    """Read what one owner has. Raises DataError, naming the file."""
    try:
        part: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected what this party owns of the data") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({type(error).__name__})") from None
    return part


def check_part(config: TrainingData, rank: int, part: Part, *, tested: bool) -> None:
    """Raise DataError where what party ``rank`` has is not what the configuration says that it owns.

    tested: test data are needed, too.
    """
    owned = _owned(config, rank)
    # Of rows, and of columns, a party may have none.
    optional = {"rows": ("images", "labels"), "columns": ("images",)}.get(config.owners.kind, ())
    for which in ("train", "test") if tested else ("train",):
        found = {kind: part[f"{which}_{kind}"] for kind in ("images", "labels") if f"{which}_{kind}" in part}
        half = len(found) == 1 and config.owners.kind == "rows"
        lacking = [kind for kind in owned if kind not in found and (half or kind not in optional)]
        if lacking or not found.keys() <= set(owned):
            raise DataError(
                f"party {rank} has {_listed(which, found)}, expected {_listed(which, owned)}: data.owners is "
                f"{config.owners.kind}, public: {config.public}"
            )
        for kind, tensor in found.items():
            _CHECKS[kind](config, f"party {rank}: {which}_{kind}", tensor)
        rows = [len(tensor) for tensor in found.values()]
        if rows and min(rows) < max(rows):
            raise DataError(f"party {rank}: {rows[0]} {which}_images, {rows[1]} {which}_labels; expected as many")


def _owned(config: TrainingData, rank: int) -> tuple[str, ...]:
    """Which of images and labels are in the file of party ``rank``."""
    owners = config.owners
    if isinstance(owners, OneOwner):
        public = () if config.public == "nothing" else (config.public,)
        return ("images", "labels") if rank == owners.party else public
    if isinstance(owners, FeaturesAndLabels):
        return {owners.features: ("images",), owners.labels: ("labels",)}.get(rank, ())
    if isinstance(owners, JoinedRows):
        return ("images", "labels")
    return ("images", "labels") if rank == owners.labels else ("images",)


def _listed(which: str, kinds: Iterable[str]) -> str:
    return " and ".join(f"{which}_{kind}" for kind in kinds) or f"no {which} data"


def _check_images(config: TrainingData, name: str, images: Tensor) -> None:
    if isinstance(config.owners, JoinedColumns):
        fits, shape = images.ndim == 2, "(n, columns)"
    else:
        fits, shape = tuple(images.shape[1:]) == _IMAGE, f"(n, {', '.join(map(str, _IMAGE))})"
    if not fits or images.dtype != torch.float32:
        raise DataError(f"{name}: expected float32 of shape {shape}, found {images.dtype} {tuple(images.shape)}")


def _check_labels(config: TrainingData, name: str, labels: Tensor) -> None:
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise DataError(f"{name}: expected int64 of shape (n,), found {labels.dtype} {tuple(labels.shape)}")
    outside = int(((labels < 0) | (labels >= CLASSES)).sum())
    if outside:
        raise DataError(f"{name}: expected classes 0 to {CLASSES - 1}, found {outside} of {len(labels)} beyond them")


_CHECKS = {"images": _check_images, "labels": _check_labels}


def public_digest(config: TrainingData, parts: Mapping[int, Part]) -> str:
    """Tells whether two parties have the same public data; nothing of what is secret is in it."""
    own = next(iter(parts.values()))
    return digest({name: own[name] for name in own if name.endswith(config.public)}, b"").hex()


def digest(part: Part, key: bytes) -> bytes:
    """What tells whether a part is the same as before, and nothing else to those who do not have ``key``."""
    whole = hashlib.blake2b(key=key, digest_size=32)
    for name in sorted(part):
        tensor = part[name].contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.numpy().data)
    return whole.digest()


def share_rows(config: TrainingData, which: str, parts: Mapping[int, Part], session: Session) -> Rows:
    """The ``which`` ("train" or "test") rows of all owners, of whom those in ``parts`` live in this process.

    Labels are shared as one-hot rows and as classes; each in the rounds of a joining, see ``encml.tensor.joining``.
    Raises DataError, at every party, where images and labels do not fit together, or there are none.
    """
    rows = _shared_rows(config, which, parts, session)
    if not 0 < len(rows.images) == len(rows.classes):
        raise DataError(
            f"{which}: the owners together have {len(rows.images)} images and {len(rows.classes)} labels; expected as "
            "many of each, and one at least"
        )
    return rows


def _shared_rows(config: TrainingData, which: str, parts: Mapping[int, Part], session: Session) -> Rows:
    owners = config.owners
    found = {rank: part.get(f"{which}_images") for rank, part in parts.items()}
    classes = {rank: part.get(f"{which}_labels") for rank, part in parts.items()}
    public = config.public
    if isinstance(owners, JoinedColumns):
        images: Tensor = join_columns(found, session=session)
        if images.shape[1] != math.prod(_IMAGE):
            raise DataError(
                f"{which}: the owners together have {images.shape[1]} columns, expected {math.prod(_IMAGE)}"
            )
        images = images.view(-1, *_IMAGE)
    else:
        images = _public(found) if public == "images" else join_rows(found, session=session)
    if public == "labels":
        plain = _public(classes)
        return Rows(images, plain, plain)
    one_hot = {rank: None if y is None else F.one_hot(y, CLASSES).float() for rank, y in classes.items()}
    return Rows(images, join_rows(one_hot, session=session), join_rows(classes, session=session))


def _public(found: Mapping[int, Tensor | None]) -> Tensor:
    plain = next(iter(found.values()))
    if plain is None:
        raise DataError("what is public must be in the file of every party")
    return plain


def count_right(scores: Tensor, classes: Tensor) -> Tensor:
    """How many rows of ``scores`` (n, classes) are largest at their class: a secret number."""
    right: Tensor = (scores.argmax(1) == classes).sum()
    assert isinstance(right, SharedTensor)
    return right
