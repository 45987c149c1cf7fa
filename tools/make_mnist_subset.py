"""Regenerate encml/data/mnist_subset.safetensors.xz from the original MNIST files.

    python tools/make_mnist_subset.py ROOT        (ROOT/MNIST/raw holds the four files)

Takes the first 9,000 training and the first 1,500 test images with their labels, nothing random, so that the same
originals give the same tensors. (The packed bytes may differ between versions of liblzma.)
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

from safetensors.torch import save

from encml.data import load_mnist
from encml.data.mnist import SUBSET

TRAIN, TEST = 9_000, 1_500
TARGET = Path(__file__).parents[1] / "encml" / "data" / SUBSET
# Four bits of literal context pack these images best: 138 bytes each, where gzip needs 161 and PNG 166.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


def main(root: Path) -> None:
    """Write the subset of the MNIST under ``root`` into the package."""
    data = load_mnist(root)
    if len(data.train_labels) < 60_000:
        sys.exit(f"found {data.source}: the original files are needed")
    tensors = {
        "train_images": data.train_images[:TRAIN].contiguous(),
        "train_labels": data.train_labels[:TRAIN].byte(),
        "test_images": data.test_images[:TEST].contiguous(),
        "test_labels": data.test_labels[:TEST].byte(),
    }
    TARGET.write_bytes(lzma.compress(save(tensors), format=lzma.FORMAT_XZ, filters=FILTERS))
    sys.stdout.write(f"{TARGET}: {TARGET.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
