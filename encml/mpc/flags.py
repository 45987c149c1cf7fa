"""Secret bits taken out of their words, so that they can be picked, repeated and rearranged; and back.

Flags are (S, *shape) uint8 with one bit, XOR-shared, an element: eight times the memory of a plane, for bits on the
way between two protocols.
"""

from __future__ import annotations

import math

from torch import Tensor

from encml.mpc.comparison import SecretBits
from encml.mpc.multiplication import and_bits
from encml.mpc.parties import Parties
from encml.net.transport import PARTIES
from encml.ring.bits import flags_to_planes, planes_to_flags


def unpacked(bits: SecretBits) -> Tensor:
    """Secret bits as flags. No communication."""
    return planes_to_flags(bits.plane, math.prod(bits.shape)).view(bits.plane.shape[0], *bits.shape)


def packed(flags: Tensor) -> SecretBits:
    """The inverse of ``unpacked``. No communication."""
    shape = tuple(flags.shape[1:])
    return SecretBits(flags_to_planes(flags.reshape(flags.shape[0], math.prod(shape))), shape)


def inverted(parties: Parties, flags: Tensor) -> Tensor:
    """NOT of every flag: share 0 is flipped by those who hold it. No communication."""
    result = flags.clone()
    share = parties.share(result, 0)
    if share is not None:
        share.bitwise_xor_(1)
    return result


def both(parties: Parties, x: Tensor, y: Tensor, operation: str) -> Tensor:
    """AND of flags of the same shape. 1 round, 1 bit a gate and party."""
    plane = and_bits(parties, packed(x).plane, packed(y).plane, operation)
    return unpacked(SecretBits(plane, tuple(x.shape[1:])))


def open_bits(parties: Parties, bits: SecretBits, operation: str = "reveal") -> Tensor:
    """Reveal bits to all three parties, as bool of their shape: party i sends share i to party i + 1.

    1 round, 1 bit an element and party.
    """
    plane = bits.plane
    received = parties.net.rotate(plane[: parties.here], +1, operation)
    whole = plane[0] ^ plane[1] ^ (plane[2] if parties.here == PARTIES else received[0])
    return unpacked(SecretBits(whole[None], bits.shape))[0].bool()
