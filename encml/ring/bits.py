"""Bits of ring elements, kept as planes.

Boolean circuits run on *bit planes*: plane j packs bit j of n elements into ceil(n / 64) words, element i in bit
i mod 64 of word i // 64. A gate is then one bitwise operation on whole planes, and what travels is exactly the bits
that the gate needs.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WORD = 64


def words_for(elements: int) -> int:
    """The words in one plane of ``elements`` bits."""
    return -(-elements // WORD)


def to_planes(values: Tensor, bits: int) -> Tensor:
    """The low ``bits`` bits of int64 ``values`` (n,) as planes (bits, words_for(n)), int64; padding bits are 0."""
    n = values.numel()
    planes = torch.empty((bits, words_for(n)), dtype=torch.int64)
    if n:
        _transpose(values.contiguous().numpy().view(np.uint64), planes.numpy().view(np.uint64))
    return planes


def from_plane(plane: Tensor, elements: int) -> Tensor:
    """One plane (words,) as int64 zeros and ones (elements,)."""
    return unpack_bits(plane.contiguous().view(torch.uint8), elements)


def pack_bits(flags: Tensor) -> Tensor:
    """Bool (n,) to uint8 (ceil(n / 8),), element i in bit i mod 8 of byte i // 8."""
    return torch.from_numpy(np.packbits(flags.numpy(), bitorder="little"))


def unpack_bits(packed: Tensor, elements: int) -> Tensor:
    """The inverse of ``pack_bits``, as int64 zeros and ones (elements,)."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=elements, bitorder="little").astype(np.int64))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def _transpose(values: npt.NDArray[np.uint64], planes: npt.NDArray[np.uint64]) -> None:
    """Transpose 64 x 64 bit blocks by halving (Warren 2013, Hacker's Delight, section 7-3)."""
    block = np.empty(64, np.uint64)
    for word in range(planes.shape[1]):
        first = word * 64
        here = min(64, values.shape[0] - first)
        for i in range(here):
            block[i] = values[first + i]
        for i in range(here, 64):
            block[i] = np.uint64(0)
        width = 32
        mask = np.uint64(0x00000000FFFFFFFF)
        while width:
            shift = np.uint64(width)
            i = 0
            while i < 64:
                swap = ((block[i] >> shift) ^ block[i + width]) & mask
                block[i] ^= swap << shift
                block[i + width] ^= swap
                i = (i + width + 1) & ~width
            width >>= 1
            mask ^= mask << np.uint64(width)
        for bit in range(planes.shape[0]):
            planes[bit, word] = block[bit]
