"""Means, variances and inverse roots of secrets, with the digits that they need and in few rounds.

A normalisation multiplies differences by numbers from 1/100 to 300, and adds an eps of 1e-5 to a variance, less than
one unit of the last place at 16 fraction bits. So its statistics carry more fraction bits than other secrets, which
costs next to nothing, for they are few:

    x - mean                   f + 4   the mean is found in two steps; the second needs no round of its own
    1 / sqrt(variance + eps)   24      from the sum of squares at 2f bits, to which eps is added before any rounding

Bounds, for n elements that are averaged: |mean| < 2^12, variance < 2^16, and n * variance < 2^(62 - 2f), over more than
2^14 elements counting those only that have the first averaged dimension in common. At f = 16 that is a deviation of 256
over 2^14 elements, and 23 over a plane of 2^21.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from encml.mpc.functions import roots
from encml.mpc.multiplication import product
from encml.mpc.session import Session
from encml.mpc.sharing import public
from encml.mpc.truncation import truncate, truncate_rows
from encml.ring.devices import beside
from encml.ring.fixed import RANGE_BITS
from encml.ring.layout import in_memory_order
from encml.tensor.secret import Secret, broadcast

ROOT_BITS = 24
"""Fraction bits of an inverse root, and of what it is the root of."""
_FACTOR_BITS = 16
_CHUNK_BITS = 14
"""Squares of more than 2^14 elements are rescaled before they are all added up."""
_RADICAND_BITS = 40
_EPS_BITS = 32
LEAST_SQUARE = 2.0**-27
"""The smallest number whose inverse root is taken."""
SQUARE_BITS = 28
"""Fraction bits of a sum of squares before its root is taken."""


def centred_bits(session: Session) -> int:
    """Fraction bits of x - mean."""
    return session.fraction_bits + max(0, min(4, ROOT_BITS - session.fraction_bits))


# Arithmetic with fraction bits of one's own choice ---------------------------------------------------------------


def cut(value: Secret, bits: int) -> Secret:
    """The same value, replicated, at exactly ``bits`` fraction bits.

    Free or local if it is replicated and has no more; else rounds and bytes of a truncation or a resharing.
    """
    parties, excess = value.session.parties, value.fraction_bits - bits
    if excess > 0:
        divide = truncate_rows if value.pending else truncate
        payload = in_memory_order(lambda terms: divide(parties, terms, excess), value.terms)
    else:
        payload = value.at_bits(bits)
        if value.pending:
            payload = in_memory_order(lambda rows: parties.reshare(rows, "multiply"), payload)
    return Secret(value.session, bits, payload=payload)


def times(left: Secret, right: Secret) -> Secret:
    """left * right, broadcast, of replicated secrets, as pending rows. No communication; mind the range."""
    rows = product(left.session.parties, torch.mul, *broadcast(left.terms, right.terms))
    return Secret(left.session, left.fraction_bits + right.fraction_bits, rows=rows)


def sum_times(left: Secret, right: Secret, axes: Sequence[int], keepdim: bool = True) -> Secret:
    """The sum of left * right over dimensions of the terms, pending. No communication."""

    def summed(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum([axis - 1 for axis in axes], keepdim)

    rows = product(left.session.parties, summed, *broadcast(left.terms, right.terms))
    return Secret(left.session, left.fraction_bits + right.fraction_bits, rows=rows)


def plus(left: Secret, right: Secret, sign: int = 1) -> Secret:
    """left + sign * right, broadcast, at the larger number of fraction bits. No communication; mind the range."""
    bits, pending = max(left.fraction_bits, right.fraction_bits), left.pending or right.pending
    here = left.session.parties.here
    a, b = broadcast(*(s.at_bits(bits)[:here] if pending else s.at_bits(bits) for s in (left, right)))
    return Secret(left.session, bits, **{"rows" if pending else "payload": torch.add(a, b, alpha=sign)})


def by(value: Secret, number: float | Tensor, bits: int) -> Secret:
    """A secret times public numbers rounded to ``bits`` bits. No communication; mind the range."""
    integers = torch.round(torch.as_tensor(number, dtype=torch.float64) * 2.0**bits).to(torch.int64)
    return value.like(value.terms * beside(value.terms, integers), bits)


def known_at(session: Session, numbers: float | Tensor, bits: int) -> Secret:
    """Public numbers as a secret at ``bits`` fraction bits."""
    integers = torch.round(torch.as_tensor(numbers, dtype=torch.float64) * 2.0**bits).to(torch.int64)
    return Secret(session, bits, payload=public(session.parties, integers))


def halved(value: Secret, times_halved: int) -> Secret:
    """value / 2^k: the same terms with k more fraction bits."""
    return value.like(value.terms, times_halved)


def average(total: Secret, n: int) -> Secret:
    """total / n, to be cut: exact for powers of two, else the factor is rounded by 2^-17 of itself. No communication.

    |total / n| < 2^(62 - 16) / 2^(fraction bits) / n, and 2^12 in any case.
    """
    k = n.bit_length() - 1
    if n == 1 << k:
        return halved(total, k)
    bits = max(8, min(_FACTOR_BITS, RANGE_BITS - 12 - total.fraction_bits - k))
    return by(halved(total, k), 2.0**k / n, bits)


# Statistics ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Moments:
    """What ``moments`` finds; all but ``centred`` have size 1 in the averaged dimensions.

    centred: x - mean at ``centred_bits``. mean: at the same bits; None if it was not taken away.
    root: 1 / sqrt(m (variance + eps)), at ROOT_BITS, with the public m = n / 4^j from 1 to 4.
    beside: what the protocols in its shadow returned.
    """

    centred: Secret
    mean: Secret | None
    root: Secret
    m: float
    beside: list[Any]

    def deviation(self) -> Secret:
        """1 / sqrt(variance + eps) at ROOT_BITS. 2 rounds; none where n is a power of 4."""
        return cut(by(self.root, math.sqrt(self.m), 20), ROOT_BITS) if self.m != 1 else self.root


Beside = Callable[[Secret | None, Secret], Any]
"""A protocol given the mean at f bits and m (variance + eps) at its own; not longer than an inverse root."""


def quarters(n: int) -> tuple[int, float]:
    """(j, m) with n = m 4^j, 1 <= m < 4."""
    j = (n.bit_length() - 1) // 2
    return j, n / 4**j


def moments(
    x: Secret, axes: Sequence[int], eps: float, *, centre: bool = True, beside: Sequence[Beside] = ()
) -> Moments:
    """Mean and inverse deviation over dimensions ``axes`` (of the terms) of a settled secret.

    With ``centre`` off the mean is taken to be 0. ``beside`` runs in the rounds of the root. 2 rounds for the mean
    (none if it is exact), 1 to 3 for the squares, 27 for the root; bytes for one element of each statistic only.
    """
    session, n = x.session, math.prod(x.terms.shape[axis] for axis in axes)
    near: Secret | None = None
    rest: Secret | None = None
    difference = x
    if centre:
        total = x.linear(lambda terms: terms.sum(list(axes), keepdim=True))
        near = cut(average(total, n), session.fraction_bits)
        difference = plus(x, near, -1)
        rest = plus(total, near.like(near.terms * n), -1)
    under = _variance(difference, axes, n, eps)

    def exact_mean() -> Secret | None:
        return None if rest is None or near is None else plus(near, cut(average(rest, n), centred_bits(session)))

    root, mean, *others = session.parties.together(
        lambda: inverse_root(under, eps * quarters(n)[1]),
        exact_mean,
        *(lambda job=job: job(near, under) for job in beside),
    )
    return Moments(plus(x, mean, -1) if mean is not None else x, mean, root, quarters(n)[1], others)


def _variance(x: Secret, axes: Sequence[int], n: int, eps: float) -> Secret:
    """m (mean of squares over ``axes`` + eps), replicated."""
    j, m = quarters(n)
    surplus = max(0, (n - 1).bit_length() - _CHUNK_BITS)
    if surplus and len(axes) > 1:
        first, *inner = axes
        parts = sum_times(x, x, inner)
        parts = cut(parts, parts.fraction_bits - surplus)
        squares = halved(parts.linear(lambda terms: terms.sum(first, keepdim=True)), 2 * j)
    else:
        squares = halved(sum_times(x, x, axes), 2 * j)
    shifted = plus(squares, known_at(x.session, eps * m, max(squares.fraction_bits, _EPS_BITS)))
    return cut(shifted, min(shifted.fraction_bits, _RADICAND_BITS))


def inverse_root(value: Secret, least: float) -> Secret:
    """1 / sqrt(value) at ROOT_BITS, for a replicated value >= ``least``. See ``encml.mpc.functions.roots``.

    Below 2^-27 a value counts as something from there on, so that 0 times the result is 0.
    """
    least = max(least, LEAST_SQUARE)
    payload = roots.inverse_root(value.session.parties, value.terms, value.fraction_bits, ROOT_BITS, least)
    return Secret(value.session, ROOT_BITS, payload=payload)


def root(value: Secret, bits: int) -> Secret:
    """sqrt(value) at ``bits``, for a value >= 0 of at least 28 bits that is cut to 28: below 2^30."""
    held = cut(value, SQUARE_BITS)
    payload = roots.root(value.session.parties, held.terms, SQUARE_BITS, bits)
    return Secret(value.session, bits, payload=payload)
