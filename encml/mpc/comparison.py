"""Signs of secrets, and what is chosen by them.

x = A + B with A = x_r + x_{r+1} known to party r and B = x_{r+2} known to parties r + 1 and r + 2: the asymmetry is
free, and all of this file lives on it. r takes turns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from encml.mpc.multiplication import and_bits
from encml.mpc.parties import Parties, known
from encml.net.transport import PARTIES, Message
from encml.ring.bits import from_plane, to_planes, words_for

WORD_BITS = 64


@dataclass(frozen=True, slots=True, repr=False)
class SecretBits:
    """One secret bit for every element of ``shape``, XOR-shared: a payload (S, words) of one bit plane."""

    plane: Tensor
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return f"SecretBits(shape={self.shape})"


def negative(parties: Parties, payload: Tensor, bits: int = WORD_BITS, operation: str = "compare") -> SecretBits:
    """x < 0 for every element: the most significant bit of a payload's values.

    8 rounds, 68 B an element in all, 22.7 B a party, at 64 bits; with a declared range -2^(bits-1) <= x < 2^(bits-1),
    fewer: 7 rounds and 32.4 B at 32 bits. ``bits`` is 2 to 64; beyond the declared range the result is meaningless.

    1. Party r XOR-shares A: s0 = PRG with party r + 2, s1 = A ^ s0 to party r + 1. Propagate bits p = A ^ B are then
       the XOR shares (s0, s1, B), without a message.
    2. Generate bits g = A & B = (s0 & B) ^ (s1 & B): party r + 2 and party r + 1 have one term each and reshare.
    3. A prefix tree for the carry into the top bit only: (g, p) o (g', p') = (g ^ p g', p p'), half the width each
       level, the lowest group without its p: 118 AND gates at 64 bits, in six rounds.
    (Mohassel and Rindal 2018 for the adder on shares; the asymmetry is ours.)
    """
    if not 2 <= bits <= WORD_BITS:
        raise ValueError(f"a declared range has 2 to {WORD_BITS} bits, found {bits}")
    r = parties.next_lead()
    shape = tuple(payload.shape[1:])
    n = payload[0].numel()
    planes = (bits, words_for(n))

    s0 = parties.common(r - 1, planes)
    s1 = None
    if parties.plays(r):
        a = known(parties.share(payload, r)) + known(parties.share(payload, r + 1))
        s1 = to_planes(a.reshape(-1), bits) ^ known(s0)
    (got,) = parties.net.exchange([Message(r, (r + 1) % PARTIES, s1, planes, torch.int64)], operation)
    s1 = got if s1 is None else s1
    b = parties.share(payload, r + 2)
    b = None if b is None else to_planes(b.reshape(-1), bits)
    p = parties.assemble([s0, s1, b], r)

    low = bits - 1
    left = known(s1)[:low] & known(b)[:low] if parties.plays(r + 1) else None
    right = known(s0)[:low] & known(b)[:low] if parties.plays(r + 2) else None
    g = parties.reshare_pair(r + 1, left, right, (low, planes[1]), operation, xor=True)
    return SecretBits(_carry(parties, g, p[:, :low], operation) ^ p[:, low], shape)


def _carry(parties: Parties, g: Tensor, p: Tensor, operation: str) -> Tensor:
    """The carry out of planes (S, k, words) of generate and propagate bits, lowest first: a payload (S, words)."""
    while (k := g.shape[1]) > 1:
        pairs = k // 2
        high_p = p[:, 1 : 2 * pairs : 2]
        both = and_bits(
            parties,
            torch.cat([high_p, high_p[:, 1:]], 1),
            torch.cat([g[:, 0 : 2 * pairs : 2], p[:, 2 : 2 * pairs : 2]], 1),
            operation,
        )
        new_g, new_p = g[:, 1 : 2 * pairs : 2] ^ both[:, :pairs], both[:, pairs:]
        # The lowest group never needs its propagate bit: a plane of zeros keeps the indices aligned.
        new_p = torch.cat([torch.zeros_like(new_g[:, :1]), new_p], 1)
        g = torch.cat([new_g, g[:, 2 * pairs :]], 1)
        p = torch.cat([new_p, p[:, 2 * pairs :]], 1)
    return g[:, 0]


def invert(parties: Parties, bits: SecretBits) -> SecretBits:
    """NOT of every bit: share 0 is flipped by those who hold it. No communication."""
    plane = bits.plane.clone()
    share = parties.share(plane, 0)
    if share is not None:
        share.bitwise_not_()
    return SecretBits(plane, bits.shape)


def to_arithmetic(parties: Parties, bits: SecretBits, operation: str = "compare") -> Tensor:
    """XOR-shared bits to a payload of 0 and 1 over Z_2^64. 2 rounds, 24 B an element in all."""
    (payload,) = _select(parties, bits, None, True, operation)
    return payload


def select(parties: Parties, bits: SecretBits, payload: Tensor, operation: str = "select") -> Tensor:
    """bit * x for every element, with no truncation. 2 rounds, 32 B an element in all."""
    (chosen,) = _select(parties, bits, payload, False, operation)
    return chosen


def select_with_bit(
    parties: Parties, bits: SecretBits, payload: Tensor, operation: str = "select"
) -> tuple[Tensor, Tensor]:
    """(bit * x, bit) as payloads, for what needs the bit again in backward. 2 rounds, 48 B an element in all."""
    chosen, bit = _select(parties, bits, payload, True, operation)
    return chosen, bit


def _select(
    parties: Parties, bits: SecretBits, payload: Tensor | None, want_bit: bool, operation: str
) -> tuple[Tensor, ...]:
    """bit = a ^ b2 with a known to party r, b2 to parties r + 1 and r + 2, so with x = A + B

        bit     = b2 + (1 - 2 b2) a
        bit * x = b2 A + b2 B + (1 - 2 b2) (a A) + (1 - 2 b2) a B.

    Party r shares a and a A (round 1: masks t0, u0 with party r + 2, the rest t1, u1 to party r + 1). Then every term
    is known to party r + 1 or to party r + 2 alone, and they reshare (round 2).
    """
    shape, n = bits.shape, math.prod(bits.shape)
    if payload is not None and tuple(payload.shape[1:]) != shape:
        raise ValueError(
            f"bits of shape {shape} select from values of shape {tuple(payload.shape[1:])}: expand one first"
        )
    r = parties.next_lead()
    has_x = payload is not None
    dealt = (1 + has_x, n)

    masks = parties.common(r - 1, dealt)
    rest = None
    if parties.plays(r):
        plane_a = known(parties.share(bits.plane, r)) ^ known(parties.share(bits.plane, r + 1))
        a = from_plane(plane_a, n)
        values = [a]
        if payload is not None:
            values.append(a * (known(parties.share(payload, r)) + known(parties.share(payload, r + 1))).reshape(-1))
        rest = torch.stack(values) - known(masks)
    (got,) = parties.net.exchange([Message(r, (r + 1) % PARTIES, rest, dealt, torch.int64)], operation)

    def terms(share_of_dealt: Tensor, own_part_of_a: Tensor | None, with_b: bool) -> Tensor:
        b2 = from_plane(known(parties.share(bits.plane, r + 2)), n)
        sign = 1 - 2 * b2
        out = []
        if payload is not None:
            b = known(parties.share(payload, r + 2)).reshape(-1)
            from_b2 = known(own_part_of_a).reshape(-1) + b if with_b else known(own_part_of_a).reshape(-1)
            out.append(b2 * from_b2 + sign * (share_of_dealt[1] + share_of_dealt[0] * b))
        if want_bit:
            out.append(sign * share_of_dealt[0] + b2 if with_b else sign * share_of_dealt[0])
        return torch.stack(out)

    left = right = None
    if parties.plays(r + 1):
        part = None if payload is None else parties.share(payload, r + 1)
        left = terms(known(got if rest is None else rest), part, True)
    if parties.plays(r + 2):
        part = None if payload is None else parties.share(payload, r)
        right = terms(known(masks), part, False)
    outputs = has_x + want_bit
    result = parties.reshare_pair(r + 1, left, right, (outputs, n), operation)
    return tuple(result[:, i].reshape(len(result), *shape) for i in range(outputs))
