"""Bits of ring elements, kept as planes.

Boolean circuits run on *bit planes*: plane j packs bit j of n elements into ceil(n / 64) words, element i in bit
i mod 64 of word i // 64. A gate is then one bitwise operation on whole planes, and what travels is exactly the bits
that the gate needs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from encml.ring.kernels.elementwise import NOTHING, planes_of

WORD = 64


def words_for(elements: int) -> int:
    """The words in one plane of ``elements`` bits."""
    return -(-elements // WORD)


def to_planes(values: Tensor, bits: int) -> Tensor:
    """The low ``bits`` bits of int64 ``values`` (n,) as planes (bits, words_for(n)), int64; padding bits are 0."""
    planes = np.empty((bits, words_for(values.numel())), np.int64)
    planes_of(values.numpy().ravel(), NOTHING, NOTHING, bits, planes.reshape(-1))
    return torch.from_numpy(planes)


def from_plane(plane: Tensor, elements: int) -> Tensor:
    """One plane (words,) as int64 zeros and ones (elements,)."""
    return planes_to_flags(plane[None], elements)[0].to(torch.int64)


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


def pack_bits(flags: Tensor) -> Tensor:
    """Bool (n,) to uint8 (ceil(n / 8),), element i in bit i mod 8 of byte i // 8."""
    return torch.from_numpy(np.packbits(flags.numpy(), bitorder="little"))


def unpack_bits(packed: Tensor, elements: int) -> Tensor:
    """The inverse of ``pack_bits``, as int64 zeros and ones (elements,)."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=elements, bitorder="little").astype(np.int64))
