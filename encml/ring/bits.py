"""Bits of ring elements, kept as planes.

Boolean circuits run on *bit planes*: plane j packs bit j of n elements into ceil(n / 64) words, element i in bit
i mod 64 of word i // 64. A gate is then one bitwise operation on whole planes, and what travels is exactly the bits
that the gate needs. (From numbers to planes: ``encml.ring.kernels.elementwise.planes_of``.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORD = 64


def words_for(elements: int) -> int:
    """The words in one plane of ``elements`` bits."""
    return -(-elements // WORD)


def flags_to_planes(flags: Tensor) -> Tensor:
    """Flags (k, n), uint8 zeros and ones, to planes (k, words_for(n)), int64; padding bits are 0."""
    count, n = flags.shape
    planes = np.zeros((count, words_for(n)), np.int64)
    octets = np.packbits(flags.numpy(), axis=1, bitorder="little")
    planes.view(np.uint8)[:, : octets.shape[1]] = octets
    return torch.from_numpy(planes)


def planes_to_flags(planes: Tensor, elements: int) -> Tensor:
    """The inverse of ``flags_to_planes``: planes (k, words) to flags (k, elements)."""
    octets = np.ascontiguousarray(planes.numpy()).view(np.uint8)
    return torch.from_numpy(np.unpackbits(octets, axis=1, count=elements, bitorder="little"))
