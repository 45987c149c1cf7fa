"""Sharing from outside: a data owner, who is not a computing party, deals a secret to the three parties.

x_0 and x_1 are pseudo-random from two fresh seeds, x_2 = x - x_0 - x_1, so of three shares two cost 16 bytes each:

    party 0 gets (seed of x_0, seed of x_1)    party 1 gets (seed of x_1, x_2)    party 2 gets (x_2, seed of x_0)

Each party's parcel is independent of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encml.errors import ProtocolError
from encml.mpc.parties import Parties
from encml.net.transport import PARTIES
from encml.ring.prg import KEY_BYTES, KeyStream, fresh_key

Half = bytes | Tensor
"""One share as dealt: a 16-byte seed, or the ring elements themselves."""


@dataclass(frozen=True, slots=True, repr=False)
class Parcel:
    """What one party receives of one dealt tensor: its two shares x_i and x_{i+1}, each a seed or ring elements."""

    first: Half
    second: Half
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Parcel(shape={self.shape})"

    def expand(self) -> Tensor:
        """The two shares as int64 (2, *shape). Raises ProtocolError if a half is of another size, shape or dtype."""
        if any(size < 0 for size in self.shape):
            raise ProtocolError(f"a parcel has the impossible shape {self.shape}")
        return torch.stack([_expand(self.first, self.shape), _expand(self.second, self.shape)])


def deal(integers: Tensor) -> tuple[Parcel, Parcel, Parcel]:
    """Split int64 ring elements into the parcels for parties 0, 1 and 2. No communication."""
    shape = tuple(integers.shape)
    seeds = fresh_key(), fresh_key()
    rest = integers - _expand(seeds[0], shape) - _expand(seeds[1], shape)
    return Parcel(seeds[0], seeds[1], shape), Parcel(seeds[1], rest, shape), Parcel(rest, seeds[0], shape)


def receive(parties: Parties, parcels: Sequence[Tensor]) -> Tensor:
    """Expanded parcels (2, *shape), one for each party that lives here, to a payload (S, *shape). No communication.

    Raises ProtocolError if there are more or fewer, or if they are not int64 of one shape. That neighbours were dealt
    the same share is taken from an honest dealer, not checked.
    """
    if len(parcels) != parties.here:
        raise ProtocolError(f"expected {parties.here} parcels, one a party in this process, found {len(parcels)}")
    for parcel in parcels:
        if parcel.dtype != torch.int64 or parcel.shape[:1] != (2,) or parcel.shape != parcels[0].shape:
            raise ProtocolError(
                f"expanded parcels are int64 of one shape (2, ...), found {parcel.dtype} of {tuple(parcel.shape)} "
                f"beside {tuple(parcels[0].shape)}"
            )
    if parties.here == PARTIES:
        return torch.stack([parcel[0] for parcel in parcels])
    return parcels[0]


def _expand(half: Half, shape: tuple[int, ...]) -> Tensor:
    if isinstance(half, bytes):
        if len(half) != KEY_BYTES:
            raise ProtocolError(f"a parcel's seed has {len(half)} bytes, expected {KEY_BYTES}")
        return KeyStream(half).words(shape)
    if tuple(half.shape) != shape or half.dtype != torch.int64:
        raise ProtocolError(f"a parcel of shape {shape} holds a {half.dtype} tensor of shape {tuple(half.shape)}")
    return half
