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

import torch
from torch import Tensor

from encml.mpc.parties import Parties, known
from encml.net.transport import PARTIES, Message
from encml.ring.bits import pack_bits, unpack_bits
from encml.ring.fixed import RANGE_BITS

MAX_SHIFT = 48


def truncate_rows(parties: Parties, rows: Tensor, m: int, operation: str = "truncate") -> Tensor:
    """Additive rows (P, *shape) divided by 2^m, as a fresh payload. 3 rounds, 8.75 B an element at m <= 16.

    Party p + 2 sends z_{p+2} + alpha_{p+2} to party p + 1 together with c1, then as above.
    """
    p = parties.next_lead()
    shape = tuple(rows.shape[1:])
    rows = parties.zero(shape).add_(rows)
    last, middle = (p + 2) % PARTIES, (p + 1) % PARTIES
    z_last = rows[parties.row(last)].contiguous() if parties.plays(last) else None
    deal = _Deal(parties, p, rows[0].numel(), m)
    moved, c1 = parties.net.exchange([Message(last, middle, z_last, shape, torch.int64), deal.message()], operation)
    x0 = rows[parties.row(p)].reshape(-1) if parties.plays(p) else None
    x1 = rows[parties.row(middle)].reshape(-1) + known(moved).view(-1) if parties.plays(middle) else None
    deal.mask(x0, x1)
    e, d = parties.net.exchange(deal.openings(), operation)
    return _finish(parties, deal, c1, e, d, shape, operation)


def truncate(parties: Parties, payload: Tensor, m: int, operation: str = "truncate") -> Tensor:
    """A payload divided by 2^m, as a fresh payload. 2 rounds, 6.1 B an element and party at m <= 16.

    X0 = x_p + x_{p+1} + PRG_p and X1 = x_{p+2} - PRG_p need no message; the common mask makes the rounding fair where a
    share is constant, as in a value just shared by one party.
    """
    p = parties.next_lead()
    shape = tuple(payload.shape[1:])
    deal = _Deal(parties, p, payload[0].numel(), m)
    split = parties.common(p, (deal.n,))
    x0 = x1 = None
    if parties.plays(p):
        x0 = (known(parties.share(payload, p)) + known(parties.share(payload, p + 1))).reshape(-1) + known(split)
    if parties.plays(p + 1):
        x1 = known(parties.share(payload, p + 2)).reshape(-1) - known(split)
    deal.mask(x0, x1)
    c1, e, d = parties.net.exchange([deal.message(), *deal.openings()], operation)
    return _finish(parties, deal, c1, e, d, shape, operation)


class _Deal:
    """One dealt triple of bits for every element, and what each role here knows of the truncation under way."""

    def __init__(self, parties: Parties, p: int, elements: int, m: int) -> None:
        if not 0 < m <= MAX_SHIFT:
            raise ValueError(f"a truncation shifts by 1 to {MAX_SHIFT} bits, found {m}")
        self.parties, self.p, self.n, self.m = parties, p, elements, m
        self.dtype = torch.int16 if m <= 16 else torch.int32 if m <= 32 else torch.int64
        packed = (-(-elements // 8),)
        self.a = parties.common(p + 2, packed, torch.uint8)
        self.c0 = parties.common(p + 2, (elements,), self.dtype)
        self.b = parties.common(p + 1, packed, torch.uint8)
        self.e: Tensor | None = None
        self.d: Tensor | None = None
        self.x0: Tensor | None = None
        self.x1: Tensor | None = None

    def message(self) -> Message:
        """c1 = ab - c0 modulo 2^m, from party p + 2 to party p + 1; masked by c0."""
        p, c1 = self.p, None
        if self.parties.plays(p + 2):
            c1 = unpack_bits(known(self.a) & known(self.b), self.n).to(self.dtype) - known(self.c0)
        return Message((p + 2) % PARTIES, (p + 1) % PARTIES, c1, (self.n,), self.dtype)

    def mask(self, x0: Tensor | None, x1: Tensor | None) -> None:
        """Set X0 and X1 where known, and the masked bits e = u0 ^ a and d = u1 ^ b."""
        if x0 is not None:
            self.x0 = x0 + ((1 << RANGE_BITS) + (1 << self.m) - 1)
            self.e = pack_bits(self.x0 >= 0) ^ known(self.a)
        if x1 is not None:
            self.x1 = x1
            self.d = pack_bits(self.x1 >= 0) ^ known(self.b)

    def openings(self) -> list[Message]:
        """e to party p + 1 and d to party p: one bit an element each."""
        one, two = self.p, (self.p + 1) % PARTIES
        shape = (-(-self.n // 8),)
        return [Message(one, two, self.e, shape, torch.uint8), Message(two, one, self.d, shape, torch.uint8)]


def _finish(
    parties: Parties,
    deal: _Deal,
    c1: Tensor | None,
    e: Tensor | None,
    d: Tensor | None,
    shape: tuple[int, ...],
    operation: str,
) -> Tensor:
    n, m, p = deal.n, deal.m, deal.p
    left = right = None
    if deal.x0 is not None:
        bit_e, bit_d, bit_a = (unpack_bits(known(bits), n) for bits in (deal.e, d, deal.a))
        sign = 1 - 2 * bit_e
        product = bit_e * bit_d + sign * (bit_d * bit_a + (1 - 2 * bit_d) * known(deal.c0))
        left = _shift(deal.x0, m) + (product << (64 - m)) - ((1 << (64 - m)) + (1 << (RANGE_BITS - m)))
    if deal.x1 is not None:
        bit_e, bit_d, bit_b = (unpack_bits(known(bits), n) for bits in (e, deal.d, deal.b))
        product = (1 - 2 * bit_d) * (bit_e * bit_b + (1 - 2 * bit_e) * known(c1))
        right = _shift(deal.x1, m) + (product << (64 - m))
    payload = parties.reshare_pair(p, left, right, (n,), operation)
    return payload.view(len(payload), *shape)


def _shift(x: Tensor, m: int) -> Tensor:
    """Logical shift right."""
    return (x >> m) & ((1 << (64 - m)) - 1)
