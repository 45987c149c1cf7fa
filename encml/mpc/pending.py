"""Protocols that take a product as it comes, in additive rows, and so save the rounds of resharing it first.

A protocol on a payload splits x into A, which party r knows, and B, which parties r + 1 and r + 2 both know. Rows give
the same split: with fresh masks that add up to zero, A = z_r is party r's own, and B = z_{r+1} + z_{r+2} is known to
the other two once they have told each other their rows, which travel with the protocol's first messages anyway. And
where two parties hold a term of x each, as after a selection or in the middle of a truncation, the next truncation can
start from those two terms: see ``_Division``. (The protocols themselves: see comparison.py and truncation.py.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from encml.mpc.circuits import carry
from encml.mpc.comparison import SecretBits
from encml.mpc.parties import Parties, known
from encml.net.transport import PARTIES, Message
from encml.ring.bits import from_plane, pack_bits, to_planes, unpack_bits, words_for
from encml.ring.fixed import RANGE_BITS


def negative_rows(parties: Parties, rows: Tensor, bits: int, operation: str = "compare") -> SecretBits:
    """x < 0 for additive rows (P, *shape), for -2^(bits-1) <= x < 2^(bits-1), as ``comparison.negative``.

    As many rounds as that has (8 at 33 to 64 bits), and 16 B more an element in all.
    """
    r, shape, n = parties.next_lead(), tuple(rows.shape[1:]), math.prod(rows.shape[1:])
    rows = parties.zero(shape).add_(rows)
    planes = (bits, words_for(n))
    s0, s1 = parties.common(r - 1, planes), None
    if parties.plays(r):
        s1 = to_planes(rows[parties.row(r)].reshape(-1), bits) ^ known(s0)
    own = Message(r, (r + 1) % PARTIES, s1, planes, torch.int64)
    (got, *told) = parties.net.exchange([own, *_telling(parties, r, rows)], operation)
    s1 = got if s1 is None else s1
    total = _told(parties, r, rows, told)
    b = None if total is None else to_planes(total, bits)
    p = parties.assemble([s0, s1, b], r)
    low = bits - 1
    left = known(s1)[:low] & known(b)[:low] if parties.plays(r + 1) else None
    right = known(s0)[:low] & known(b)[:low] if parties.plays(r + 2) else None
    g = parties.reshare_pair(r + 1, left, right, (low, planes[1]), operation, xor=True)
    return SecretBits(carry(parties, g, p[:, :-1], operation) ^ p[:, -1], shape)


def select_rows(parties: Parties, bits: SecretBits, rows: Tensor, m: int, operation: str = "select") -> Tensor:
    """bit * x / 2^m for additive rows (P, *shape), |x| <= 2^62 - 2^m, as a fresh payload; rounded as ``truncate`` does.

    3 rounds and 58.25 B an element in all at m <= 16, as much as truncating first, which takes 5 rounds.

    With bit = a ^ b2, a known to party r and b2 to the other two (as in ``comparison.select``),
        bit * x = b2 (1 - a) A + (1 - b2) a A + b2 B + (1 - 2 b2) a B.
    Party r shares a, a A and (1 - a) A between parties r + 1 and r + 2 (round 1), which then hold a term each.
    """
    r, shape, n = parties.next_lead(), tuple(rows.shape[1:]), math.prod(rows.shape[1:])
    rows = parties.zero(shape).add_(rows)
    one, two = (r + 1) % PARTIES, (r + 2) % PARTIES
    masks, rest = parties.common(r - 1, (3, n)), None
    if parties.plays(r):
        held = known(parties.share(bits.plane, r)) ^ known(parties.share(bits.plane, r + 1))
        a, x = from_plane(held, n), rows[parties.row(r)].reshape(-1)
        with_a = a * x
        rest = torch.stack([a, with_a, x - with_a]) - known(masks)
    division = _Division(parties, one, n, m)
    dealt, *others = parties.net.exchange(
        [Message(r, one, rest, (3, n), torch.int64), *_telling(parties, r, rows), division.dealt()], operation
    )
    told, correction = others[:2], others[2]
    total = _told(parties, r, rows, told)
    terms: list[Tensor | None] = [None, None]
    for place, (rank, parts) in enumerate(((one, dealt), (two, masks))):
        if parties.plays(rank):
            a, with_a, without_a = known(parts)
            b2 = from_plane(known(parties.share(bits.plane, r + 2)), n)
            own = rows[parties.row(rank)].reshape(-1)
            terms[place] = with_a + a * known(total) + b2 * (without_a + own - with_a - 2 * a * known(total))
    division.mask(*terms)
    left, right = division.divided(correction, *parties.net.exchange(division.opened(), operation))
    payload = parties.reshare_pair(one, left, right, (n,), operation)
    return payload.view(len(payload), *shape)


def scale_rows(parties: Parties, rows: Tensor, m: int, factor: int, n: int, operation: str = "truncate") -> Tensor:
    """factor * (x / 2^m) / 2^n for additive rows (P, *shape) and a public integer, as a fresh payload.

    Both divisions round as ``truncate`` does, for |x| <= 2^62 - 2^m and |factor| (|x| / 2^m + 1) <= 2^62 - 2^n.
    4 rounds and 28.5 B an element in all at m and n of at most 16, where one truncation after the other has 5 and 44.5:
    the second starts from the two terms that the first ends with, so that nothing is reshared between them.
    """
    p, shape, count = parties.next_lead(), tuple(rows.shape[1:]), math.prod(rows.shape[1:])
    rows = parties.zero(shape).add_(rows)
    last, middle = (p + 2) % PARTIES, (p + 1) % PARTIES
    z = rows[parties.row(last)].reshape(-1) if parties.plays(last) else None
    first, second = _Division(parties, p, count, m), _Division(parties, p, count, n)
    split = parties.common(p, (count,))
    moved, *corrections = parties.net.exchange(
        [Message(last, middle, z, (count,), torch.int64), first.dealt(), second.dealt()], operation
    )
    x0 = rows[parties.row(p)].reshape(-1) if parties.plays(p) else None
    x1 = rows[parties.row(middle)].reshape(-1) + known(moved) if parties.plays(middle) else None
    first.mask(x0, x1)
    left, right = first.divided(corrections[0], *parties.net.exchange(first.opened(), operation))
    # An even factor would leave the lowest bits of both terms known.
    left = None if left is None else left * factor + known(split)
    right = None if right is None else right * factor - known(split)
    second.mask(left, right)
    left, right = second.divided(corrections[1], *parties.net.exchange(second.opened(), operation))
    payload = parties.reshare_pair(p, left, right, (count,), operation)
    return payload.view(len(payload), *shape)


def _telling(parties: Parties, r: int, rows: Tensor) -> list[Message]:
    """Parties r + 1 and r + 2 tell each other their masked rows. 16 B an element in all."""
    one, two = (r + 1) % PARTIES, (r + 2) % PARTIES
    shape = (math.prod(rows.shape[1:]),)
    own = {rank: rows[parties.row(rank)].reshape(-1) for rank in (one, two) if parties.plays(rank)}
    return [
        Message(one, two, own.get(one), shape, torch.int64),
        Message(two, one, own.get(two), shape, torch.int64),
    ]


def _told(parties: Parties, r: int, rows: Tensor, told: list[Tensor | None]) -> Tensor | None:
    """B = z_{r+1} + z_{r+2}, flat, for parties r + 1 and r + 2; None elsewhere. told: what ``_telling`` brought."""
    if parties.plays(r + 1):
        return rows[parties.row(r + 1)].reshape(-1) + known(told[1])
    if parties.plays(r + 2):
        return rows[parties.row(r + 2)].reshape(-1) + known(told[0])
    return None


class _Division:
    """A truncation of n numbers x = X0 + X1 by 2^m, X0 known to party p and X1 to party p + 1; see truncation.py.

    dealt (with any round), mask, opened (one round), divided: the terms of the quotient, at the same two parties.
    """

    def __init__(self, parties: Parties, p: int, n: int, m: int) -> None:
        self._parties, self._p, self._n, self._m = parties, p, n, m
        self._dtype = torch.int16 if m <= 16 else torch.int32 if m <= 32 else torch.int64
        self._packed = (-(-n // 8),)
        self._a = parties.common(p + 2, self._packed, torch.uint8)
        self._c0 = parties.common(p + 2, (n,), self._dtype)
        self._b = parties.common(p + 1, self._packed, torch.uint8)
        self._terms: list[Tensor | None] = [None, None]
        self._masked: list[Tensor | None] = [None, None]

    def dealt(self) -> Message:
        """c1 = ab - c0 modulo 2^m, from party p + 2 to party p + 1; masked by c0, which party p has."""
        p, c1 = self._p, None
        if self._parties.plays(p + 2):
            c1 = unpack_bits(known(self._a) & known(self._b), self._n).to(self._dtype) - known(self._c0)
        return Message((p + 2) % PARTIES, (p + 1) % PARTIES, c1, (self._n,), self._dtype)

    def mask(self, x0: Tensor | None, x1: Tensor | None) -> None:
        """Set X0 and X1 where known. u0 ^ a and u1 ^ b, with u = NOT msb, are what is opened."""
        if x0 is not None:
            x0 = x0 + ((1 << RANGE_BITS) + (1 << self._m) - 1)
            self._masked[0] = pack_bits(x0 >= 0) ^ known(self._a)
        if x1 is not None:
            self._masked[1] = pack_bits(x1 >= 0) ^ known(self._b)
        self._terms = [x0, x1]

    def opened(self) -> list[Message]:
        """One bit an element from each of the two to the other."""
        one, two = self._p % PARTIES, (self._p + 1) % PARTIES
        e, d = self._masked
        return [Message(one, two, e, self._packed, torch.uint8), Message(two, one, d, self._packed, torch.uint8)]

    def divided(self, c1: Tensor | None, e: Tensor | None, d: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The two terms of the quotient. c1, e, d: what came by ``dealt`` and ``opened``."""
        n, m, (x0, x1) = self._n, self._m, self._terms
        left = right = None
        if x0 is not None:
            bit_e, bit_d, bit_a = (unpack_bits(known(bits), n) for bits in (self._masked[0], d, self._a))
            product = bit_e * bit_d + (1 - 2 * bit_e) * (bit_d * bit_a + (1 - 2 * bit_d) * known(self._c0))
            left = _shifted(x0, m) + (product << (64 - m)) - ((1 << (64 - m)) + (1 << (RANGE_BITS - m)))
        if x1 is not None:
            bit_e, bit_d, bit_b = (unpack_bits(known(bits), n) for bits in (e, self._masked[1], self._b))
            product = (1 - 2 * bit_d) * (bit_e * bit_b + (1 - 2 * bit_e) * known(c1))
            right = _shifted(x1, m) + (product << (64 - m))
        return left, right


def _shifted(x: Tensor, m: int) -> Tensor:
    """Logical shift right."""
    return (x >> m) & ((1 << (64 - m)) - 1)
