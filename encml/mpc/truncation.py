"""Division by 2^m, never wrong by a whole unit in the last place.

For |x| <= 2^62 - 2^m the result is floor(x / 2^m) or that plus one, the latter with probability frac(x / 2^m): exactly
stochastic rounding. So |error| < 1 ulp always, the error is 0 on average, and multiples of 2^m are exact. There is no
catastrophic case, unlike with the local truncation of Mohassel and Zhang 2017, section 4.1.

Roles p, p + 1, p + 2 (``first``, which takes turns). Party p knows X0 and party p + 1 knows X1, with
    X0 + X1 = x + 2^62 + (2^m - 1) + w 2^64,   0 <= x + 2^62 + 2^m - 1 < 2^63,
so the wrap bit is w = msb(X0) OR msb(X1) = 1 - u0 u1, where u_i = NOT msb(X_i) is private to one party each. Then
    floor(X0 / 2^m) + floor(X1 / 2^m) - w 2^(64-m) - 2^(62-m)
is the result, by two logical shifts and the product u0 u1 modulo 2^m, which takes one dealt bit triple: party p + 2
deals bits a (to p), b (to p + 1) and ab = c0 + c1 modulo 2^m; p and p + 1 tell each other e = u0 ^ a and d = u1 ^ b;
    u0 u1 = ed + d(1-2e) a + e(1-2d) b + (1-2e)(1-2d) ab.
e and d are one-time-padded by bits their receiver does not know. (A truncation that mends the wrap-around by its
bit: Dalskov, Escudero and Keller 2020. One party dealing the triple, and the dealing modulo 2^m, are ours.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encml.mpc.parties import Parties, flat, known
from encml.net.transport import PARTIES, Message
from encml.ring.devices import host
from encml.ring.fixed import RANGE_BITS
from encml.ring.kernels.elementwise import NOTHING, Words, deal_product, open_sign, shifted_first, shifted_second

MAX_SHIFT = 48
_TYPES: tuple[tuple[int, type[np.signedinteger[Any]], torch.dtype], ...] = (
    (16, np.int16, torch.int16),
    (32, np.int32, torch.int32),
    (64, np.int64, torch.int64),
)
"""What holds a number modulo 2^m, for m up to so many bits."""


def truncate_rows(parties: Parties, rows: Tensor, m: int, operation: str = "truncate") -> Tensor:
    """Additive rows (P, *shape) divided by 2^m, as a fresh payload. 3 rounds, 8.75 B an element at m <= 16.

    Party p + 2 sends z_{p+2} + alpha_{p+2} to party p + 1 together with c1, then as above.
    """
    p = parties.next_lead()
    shape = tuple(rows.shape[1:])
    masked = parties.masked_rows(rows)
    last, middle = (p + 2) % PARTIES, (p + 1) % PARTIES
    division = Division(parties, p, math.prod(shape), m)
    if parties.plays(p):
        division.open_first(masked[parties.row(p)])
    z_last = torch.from_numpy(masked[parties.row(last)]) if parties.plays(last) else None
    moved, c1 = parties.net.exchange(
        [Message(last, middle, z_last, (division.n,), torch.int64), division.message()], operation
    )
    if parties.plays(middle):
        division.open_second(masked[parties.row(middle)], flat(moved))
    e, d = parties.net.exchange(division.openings(), operation)
    return division.finish(c1, e, d, operation).view(parties.shares_here, *shape)


def truncate(parties: Parties, payload: Tensor, m: int, operation: str = "truncate") -> Tensor:
    """A payload divided by 2^m, as a fresh payload. 2 rounds, 6.1 B an element and party at m <= 16.

    X0 = x_p + x_{p+1} + PRG_p and X1 = x_{p+2} - PRG_p need no message; the common mask makes the rounding fair where a
    share is constant, as in a value just shared by one party.
    """
    p = parties.next_lead()
    shape, values = tuple(payload.shape[1:]), host(payload)
    division = Division(parties, p, math.prod(shape), m)
    split = parties.masks(p, (division.n,))
    if parties.plays(p + 1):
        # Where party p lives here, too, it needs the same mask.
        own = known(split).copy() if parties.plays(p) else known(split)
        division.open_second(own, parties.words(values, p + 2), minus=True)
    if parties.plays(p):
        division.open_first(known(split), parties.words(values, p), parties.words(values, p + 1))
    c1, e, d = parties.net.exchange([division.message(), *division.openings()], operation)
    return division.finish(c1, e, d, operation).view(parties.shares_here, *shape)


class Division:
    """A truncation under way: what each role here knows of X0 and X1, and one dealt triple of bits for every element.

    ``message`` (c1) goes with any round. ``open_first`` at party p and ``open_second`` at party p + 1 take X0 and X1,
    flat, before ``openings`` (e, d), which take another round or the same. Then each of the two can tell its term of
    the quotient, and ``finish`` reshares them.
    """

    def __init__(self, parties: Parties, p: int, elements: int, m: int) -> None:
        if not 0 < m <= MAX_SHIFT:
            raise ValueError(f"a truncation shifts by 1 to {MAX_SHIFT} bits, found {m}")
        self.parties, self.p, self.n, self.m = parties, p, elements, m
        self.dtype, self.sent_as = next((dtype, sent_as) for bits, dtype, sent_as in _TYPES if m <= bits)
        self.packed = (-(-elements // 8),)
        self.a = parties.masks(p + 2, self.packed, np.uint8)
        self.c0 = parties.masks(p + 2, (elements,), self.dtype)
        self.b = parties.masks(p + 1, self.packed, np.uint8)
        self.e = np.empty(self.packed, np.uint8) if parties.plays(p) else None
        self.d = np.empty(self.packed, np.uint8) if parties.plays(p + 1) else None
        self.x0: Words | None = None
        self.x1: Words | None = None

    def message(self) -> Message:
        """c1 = ab - c0 modulo 2^m, from party p + 2 to party p + 1; masked by c0."""
        p, c1 = self.p, None
        if self.parties.plays(p + 2):
            dealt = np.empty(self.n, self.dtype)
            deal_product(known(self.a), known(self.b), known(self.c0), dealt)
            c1 = torch.from_numpy(dealt)
        return Message((p + 2) % PARTIES, (p + 1) % PARTIES, c1, (self.n,), self.sent_as)

    def open_first(self, total: Words, first: Words = NOTHING, second: Words = NOTHING) -> None:
        """Set X0 = total + first + second + 2^62 + 2^m - 1, in the place of ``total``, and e = u0 ^ a."""
        self.x0, offset = total, (1 << RANGE_BITS) + (1 << self.m) - 1
        open_sign(first, second, False, offset, known(self.a), total, known(self.e))

    def open_second(self, total: Words, first: Words = NOTHING, minus: bool = False) -> None:
        """Set X1 = first + total, or first - total with ``minus``, in the place of ``total``, and d = u1 ^ b."""
        self.x1 = total
        open_sign(first, NOTHING, minus, 0, known(self.b), total, known(self.d))

    def openings(self) -> list[Message]:
        """e to party p + 1 and d to party p: one bit an element each."""
        one, two = self.p, (self.p + 1) % PARTIES
        e, d = (None if bits is None else torch.from_numpy(bits) for bits in (self.e, self.d))
        return [Message(one, two, e, self.packed, torch.uint8), Message(two, one, d, self.packed, torch.uint8)]

    def first_term(self, d: Tensor | None, mask: Words, to: Words, factor: int = 1) -> None:
        """to = factor * party p's term of the quotient - mask."""
        shifted_first(known(self.x0), self.m, known(self.e), flat(d), known(self.a), known(self.c0), factor, mask, to)

    def second_term(self, c1: Tensor | None, e: Tensor | None, mask: Words, to: Words, factor: int = 1) -> None:
        """to = factor * party p + 1's term of the quotient - mask."""
        shifted_second(known(self.x1), self.m, flat(e), known(self.d), known(self.b), flat(c1), factor, mask, to)

    def finish(self, c1: Tensor | None, e: Tensor | None, d: Tensor | None, operation: str) -> Tensor:
        """The quotient as a payload (S, n), after one round."""
        pair = self.parties.pair(self.p, (self.n,))
        if pair.left is not None:
            self.first_term(d, known(pair.low), pair.left)
        if pair.right is not None:
            self.second_term(c1, e, known(pair.high), pair.right)
        return pair.reshare(operation)
