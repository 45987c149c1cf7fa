"""MNIST from a folder (packed, unpacked, damaged), by download, and the embedded subset."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from encml.data import load_mnist, load_subset, mnist, to_float
from encml.data.vision import TorchvisionMNIST
from encml.errors import DataError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    """The array in the idx format, written independently of the reader."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def contents() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    return {
        TRAIN_IMAGES: generator.integers(0, 256, (20, 28, 28)),
        TRAIN_LABELS: generator.integers(0, 10, 20),
        TEST_IMAGES: generator.integers(0, 256, (7, 28, 28)),
        TEST_LABELS: generator.integers(0, 10, 7),
    }


@pytest.fixture
def root(tmp_path: Path, contents: dict[str, np.ndarray]) -> Path:
    """A small MNIST as plain and packed files."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, array in contents.items():
        if name == TEST_LABELS:
            (raw / name).write_bytes(idx(array))
        else:
            (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchvisionMNIST, "mirrors", ["http://127.0.0.1:9/"])


def test_reads_packed_and_plain_files_and_leaves_the_folder_alone(root: Path, contents: dict[str, np.ndarray]) -> None:
    before = sorted(root.rglob("*"))
    data = load_mnist(root)
    assert sorted(root.rglob("*")) == before
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64
    for tensor, name in (
        (data.train_images, TRAIN_IMAGES),
        (data.train_labels, TRAIN_LABELS),
        (data.test_images, TEST_IMAGES),
        (data.test_labels, TEST_LABELS),
    ):
        assert np.array_equal(tensor.numpy(), contents[name])
    assert str(root) in data.source


def test_subset_is_the_start_of_mnist() -> None:
    data = load_mnist(None)
    assert data.train_images.shape == (9_000, 28, 28)
    assert data.test_images.shape == (1_500, 28, 28)
    # The first labels and pixel sums of MNIST, as everyone's copy has them.
    assert data.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert int(data.train_images[0].sum()) == 27525
    assert int(data.test_images[0].sum()) == 18454
    assert "ships with encml" in data.source
    assert "no folder was configured" in data.source


def test_subset_stays_within_its_budget() -> None:
    assert (Path(mnist.__file__).parent / mnist.SUBSET).stat().st_size <= 1_500_000


def test_damaged_subset_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "SUBSET", "README.md")
    with pytest.raises(DataError, match=r"README\.md.*reinstall"):
        load_subset("of a test")


def test_empty_folder_gives_the_subset_and_says_so(tmp_path: Path) -> None:
    assert "holds none of its files" in load_mnist(tmp_path / "nowhere").source


def test_failed_download_gives_the_subset_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch)
    data = load_mnist(tmp_path, download=True)
    assert "downloading" in data.source
    assert "failed" in data.source


def test_partial_folder_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "MNIST" / "raw" / f"{TEST_IMAGES}.gz").unlink()
    with pytest.raises(DataError, match=f"lacks {TEST_IMAGES}"):
        load_mnist(root)
    no_network(monkeypatch)
    with pytest.raises(DataError, match=f"lacks {TEST_IMAGES}.*downloading failed"):
        load_mnist(root, download=True)


def test_download_needs_a_folder() -> None:
    with pytest.raises(DataError, match="needs a folder"):
        load_mnist(None, download=True)


def truncated(file: bytes) -> bytes:
    return file[:-40]


def flipped(file: bytes) -> bytes:
    middle = len(file) // 2
    return file[:middle] + bytes([file[middle] ^ 0x55]) + file[middle + 1 :]


@pytest.mark.parametrize("damage", [truncated, flipped, lambda file: b"", lambda file: b"not gzip" + file])
def test_damaged_archive_is_named(root: Path, damage: Callable[[bytes], bytes]) -> None:
    path = root / "MNIST" / "raw" / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{TRAIN_IMAGES}\.gz"):
        load_mnist(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(np.zeros(7))[:-1], "incomplete or damaged"),
        (idx(np.zeros(7)) + b"x", "incomplete or damaged"),
        (idx(np.zeros((7, 2))), "no MNIST file"),
        (b"\0\0\x0d\x01", "no MNIST file"),
        (b"", "starts with nothing"),
        (idx(np.zeros(6)), "7 images.*6 labels"),
        (idx(np.full(7, 10)), "label 10"),
    ],
)
def test_damaged_plain_file_is_named(root: Path, content: bytes, message: str) -> None:
    (root / "MNIST" / "raw" / TEST_LABELS).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_mnist(root)
    assert TEST_LABELS in str(caught.value)


def test_other_image_size_is_refused(root: Path) -> None:
    (root / "MNIST" / "raw" / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(idx(np.zeros((20, 32, 32)))))
    with pytest.raises(DataError, match="32 x 32"):
        load_mnist(root)


def test_normalisation() -> None:
    data = load_mnist(None)
    images = to_float(data.train_images)
    assert images.shape == (9_000, 1, 28, 28)
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.std()) - 1) < 0.02
    assert data.train_images.dtype == torch.uint8
    assert float(to_float(torch.full((1, 28, 28), 255, dtype=torch.uint8))[0, 0, 0, 0]) == pytest.approx(
        (1 - 0.1307) / 0.3081, rel=1e-6
    )


def test_repr_is_short() -> None:
    assert len(repr(load_mnist(None))) < 300
