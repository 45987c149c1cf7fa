"""MNIST: from a folder, by download where that is allowed, or the small real subset that ships with the package."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import tempfile
import zlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from encml.data.vision import TorchvisionMNIST
from encml.errors import DataError

MEAN = 0.1307
"""Mean of the 60,000 training images' pixels, on the scale 0 to 1."""
STD = 0.3081
"""Standard deviation of the same pixels."""
CLASSES = 10

SUBSET = "mnist_subset.safetensors.xz"
_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_UBYTE = 0x08
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class MnistData:
    """Images uint8 (N, 28, 28), labels int64 (N,), and a sentence on where they come from."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    source: str

    def __repr__(self) -> str:
        return f"MnistData({len(self.train_labels)} training and {len(self.test_labels)} test images; {self.source})"


def load_mnist(root: Path | None, download: bool = False) -> MnistData:
    """MNIST from ``root``, as torchvision lays it out: the four files, packed (.gz) or not, in ``root/MNIST/raw``.

    ``root`` is only read, unless ``download`` allows torchvision to fetch into it what is missing. Where ``root`` is
    None or holds no MNIST, and downloading is not allowed or fails, the subset shipped with the package is used:
    the first 9,000 training and 1,500 test images. ``source`` of the result says which it was, and why.

    Raises DataError where files are there but incomplete or damaged: falling back in silence would hide that.
    """
    if root is None:
        if download:
            raise DataError("downloading MNIST needs a folder to put it in: name one as root")
        return load_subset("no folder was configured")
    raw = root / "MNIST" / "raw"
    missing = [name for name in _FILES if _find(raw, name) is None]
    if missing and download:
        try:
            TorchvisionMNIST(str(root), train=True, download=True)
        except (RuntimeError, OSError) as error:
            if len(missing) == len(_FILES):
                return load_subset(f"downloading into {root} failed ({_first_line(error)})")
            raise DataError(
                f"{raw} lacks {', '.join(missing)}, and downloading failed: {_first_line(error)}"
            ) from error
        missing = []
    if len(missing) == len(_FILES):
        return load_subset(f"{raw} holds none of its files")
    if missing:
        raise DataError(
            f"{raw} holds a part of MNIST but lacks {', '.join(missing)} (packed as .gz or not): "
            "complete it, allow downloading, or configure no root to use the subset that ships with encml"
        )
    return _load_folder(raw)


def load_subset(why: str) -> MnistData:
    """The subset that ships with the package; ``why`` it is used becomes a part of ``source``.

    Raises DataError where the package's file is missing or damaged.
    """
    resource = files("encml.data") / SUBSET
    try:
        tensors = load_safetensors(lzma.decompress(resource.read_bytes()))
    except (OSError, lzma.LZMAError, SafetensorError) as error:
        raise DataError(f"the MNIST subset {resource} is missing or damaged ({error}): reinstall encml") from error
    return MnistData(
        tensors["train_images"],
        tensors["train_labels"].long(),
        tensors["test_images"],
        tensors["test_labels"].long(),
        source=(
            f"the subset of MNIST that ships with encml ({len(tensors['train_labels']):,} training and "
            f"{len(tensors['test_labels']):,} test images), because {why}"
        ),
    )


def to_float(images: Tensor) -> Tensor:
    """uint8 (N, 28, 28) to normalised float32 (N, 1, 28, 28): pixels to 0 … 1, less ``MEAN``, divided by ``STD``."""
    return images.unsqueeze(1).to(torch.float32).div_(255.0).sub_(MEAN).div_(STD)


_DARKEST, _BRIGHTEST = to_float(torch.tensor([[[0, 255]]], dtype=torch.uint8)).flatten().tolist()
FLOAT_RANGE: tuple[float, float] = (_DARKEST, _BRIGHTEST)
"""The lowest and highest value that ``to_float`` gives: what a served model's owner may declare of its inputs."""


def _load_folder(raw: Path) -> MnistData:
    """Read the four files through torchvision, which wants them unpacked: packed ones go to a temporary folder.

    ``raw`` may be read-only, and a lasting cache could go stale; unpacking takes less than a second.
    """
    with tempfile.TemporaryDirectory(prefix="encml-mnist-") as folder:
        unpacked = Path(folder) / TorchvisionMNIST.__name__ / "raw"
        unpacked.mkdir(parents=True)
        counts = {name: _unpack(raw, name, unpacked / name) for name in _FILES}
        for images, labels in (_FILES[:2], _FILES[2:]):
            if counts[images] != counts[labels]:
                raise DataError(
                    f"{raw} is inconsistent: {images} holds {counts[images]} images, "
                    f"{labels} {counts[labels]} labels; fetch the files again"
                )
        train, test = (TorchvisionMNIST(folder, train=train) for train in (True, False))
    for name, labels in ((_FILES[1], train.targets), (_FILES[3], test.targets)):
        if len(labels) and int(labels.max()) >= CLASSES:
            raise DataError(f"{raw / name} holds the label {int(labels.max())}, MNIST has 0 to 9: fetch the file again")
    return MnistData(train.data, train.targets, test.data, test.targets, source=f"the MNIST files in {raw}")


def _find(raw: Path, name: str) -> Path | None:
    """The file ``name`` in ``raw``, unpacked or packed."""
    return next((path for path in (raw / name, raw / f"{name}.gz") if path.is_file()), None)


def _unpack(raw: Path, name: str, target: Path) -> int:
    """Copy one file, unpacked, to ``target``; the number of images or labels its header declares and it holds."""
    source = _find(raw, name)
    if source is None:
        raise DataError(f"{raw / name} disappeared while it was being read")
    try:
        with gzip.open(source) if source.suffix == ".gz" else source.open("rb") as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, _CHUNK)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source} cannot be read ({error}): fetch it again, or configure no root") from error
    return _checked_count(source, target, dimensions=3 if "images" in name else 1)


def _checked_count(source: Path, target: Path, dimensions: int) -> int:
    """Check the unpacked file's header (idx format: 0, 0, type, dimensions, then each size) against its length."""
    size = 4 * (1 + dimensions)
    with target.open("rb") as plain:
        header = plain.read(size)
    expected = bytes([0, 0, _UBYTE, dimensions])
    if len(header) < size or header[:4] != expected:
        raise DataError(
            f"{source} is no MNIST file: it starts with {header[:4].hex() or 'nothing'}, expected {expected.hex()}; "
            "fetch it again"
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if dimensions == 3 and shape[1:] != (28, 28):
        raise DataError(f"{source} holds images of {shape[1]} x {shape[2]} pixels, MNIST has 28 x 28")
    length = size + shape[0] * (28 * 28 if dimensions == 3 else 1)
    if target.stat().st_size != length:
        raise DataError(
            f"{source} is incomplete or damaged: {target.stat().st_size:,} bytes unpacked, "
            f"its header says {length:,}; fetch it again"
        )
    return int(shape[0])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(":") if str(error).strip() else type(error).__name__
