"""Clipping on shares: every vector scaled down to norm C if it is longer, and the weighted sum of what results.

The factor c = min(1, C/||x||) is computed in fixed point on one element a vector, and errs downwards only: c ||x|| <= C
holds without exception, since the sensitivity that differential privacy is accounted with rests on it. Everything is an
integer in ring units: C is the integer ``bound``, and c carries ``FACTOR_BITS`` fraction bits.

**How** (q = ||x||^2 < 2^61, C^2 >= 2^24, J = 60):

1. Bits t_k = [q >= 2^k] for 2^k between C^2 and 2^60 place q in [2^j, 2^(j+1)). They are decreasing in k, so any table
   T_j is the public linear combination T_first + sum_k t_k (T_k - T_{k-1}). In this way
       w = q 2^(J-j), exactly, in [2^60, 2^61)          and          h_j = C 2^(-j/2) (1 - 8e), rounded down.
2. v = w/2^60 in [1, 2) at 26 fraction bits (e = 2^-26), y = 1/sqrt(v) by Newton's y' = y (3 - v y^2)/2, twice from
   y = (21 - 5v)/16, which is within 4 %.
3. c = y h_j, rounded, less one unit: and 1 instead where q < C^2.

**Why c ||x|| <= C.** Newton's step never overshoots: with y = (1 - s)/sqrt(v), y' = (1 - s^2 (3 - s)/2)/sqrt(v). The
three roundings of the last step, each below e, add at most 2.6 e to y', and that of v another 0.6 e: the computed y is
at most (1 + 4.3 e)/sqrt(v), with h_j at most C/sqrt(q). Rounding the product up adds less than one unit, which is
taken off again. From below, c falls short of C/||x|| by less than 1e-5 of it and two units of 2^-20: the two steps
leave s < 6e-6.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from encml.errors import PrivacyError
from encml.mpc.comparison import negative, to_arithmetic
from encml.mpc.functions.polynomial import constant, multiply
from encml.mpc.multiplication import product
from encml.mpc.parties import Parties
from encml.mpc.sharing import public
from encml.privacy.wraparound import SQUARE_BITS

FACTOR_BITS = 20
"""Fraction bits of a clipping factor."""
MIN_BOUND = 2**12
"""The smallest C in ring units for which the factor of the longest vector is not lost in rounding."""

_TOP = SQUARE_BITS - 1  # J
_BITS = 26
_NAME = "clipping"


def squared_norms(parties: Parties, vectors: Tensor) -> Tensor:
    """||x||^2 of the vectors of a payload (S, n, d), as a payload (S, n). 1 round, 8 B a vector and party.

    Right modulo 2^64, and so only where the norm does not wrap: see ``encml.privacy.wraparound.accepted``.
    """
    rows = product(parties, lambda x, y: (x * y).sum(-1), vectors, vectors)
    return parties.reshare(rows, _NAME)


def clipping_factors(parties: Parties, squares: Tensor, bound: int) -> Tensor:
    """c = min(1, bound/||x||) of payloads (S, n) of ||x||^2 in [0, 2^61), as a payload (S, n) at ``FACTOR_BITS``.

    c ||x|| <= bound always; c falls short of the exact factor by at most 1e-5 of it and 2^-19. Reveals nothing.
    35 rounds, about 93 (62 - 2 log2(bound)) + 170 B a vector in all.
    Raises PrivacyError for a bound (in ring units) below ``MIN_BOUND`` or beyond the square root of 2^60.
    """
    if bound < MIN_BOUND or bound * bound >= 2**_TOP:
        raise PrivacyError(
            f"a clipping norm of {bound} ring units: {MIN_BOUND} to {math.isqrt(2**_TOP)} are possible; "
            "choose other fraction bits or another norm"
        )
    lowest = (bound * bound).bit_length() - 1
    limits = [bound * bound, *(2**k for k in range(lowest + 1, _TOP + 1))]
    reached = _at_least(parties, squares, limits)
    too_long, steps = reached[..., 0], reached[..., 1:]
    lift = _by_exponent(parties, steps, [2 ** (_TOP - j) for j in range(lowest, _TOP + 1)])
    scale = _by_exponent(parties, steps, [_scaled_bound(bound, j) for j in range(lowest, _TOP + 1)])

    normal = multiply(parties, squares, lift, _TOP - _BITS, _NAME)
    inverse = _inverse_root(parties, normal)
    factor = multiply(parties, inverse, scale, 2 * _BITS - FACTOR_BITS, _NAME) - constant(parties, squares, 1)
    one = constant(parties, squares, 2**FACTOR_BITS)
    return one - parties.reshare(product(parties, torch.mul, too_long, one - factor), _NAME)


def weighted_sum(parties: Parties, factors: Tensor, vectors: Tensor) -> Tensor:
    """sum_i c_i x_i of payloads (S, n) and (S, n, d), as additive rows (P, d), not masked. No communication.

    Exact: the result carries the fraction bits of both. Mask the rows before anybody else sees one.
    """
    return product(parties, torch.matmul, factors, vectors)


def _at_least(parties: Parties, values: Tensor, limits: Sequence[int]) -> Tensor:
    """[value >= limit] for every limit, as a payload (S, n, len(limits)) of 0 and 1."""
    shape = (values.shape[1], len(limits))
    thresholds = public(parties, torch.tensor(limits, dtype=torch.int64).expand(shape))
    below = to_arithmetic(parties, negative(parties, values.unsqueeze(-1) - thresholds, operation=_NAME), _NAME)
    return public(parties, torch.ones(shape, dtype=torch.int64)) - below


def _by_exponent(parties: Parties, steps: Tensor, table: Sequence[int]) -> Tensor:
    """table[number of ones] for payloads (S, n, len(table) - 1) of bits 1, ..., 1, 0, ..., 0. No communication."""
    changes = torch.tensor([after - before for before, after in itertools.pairwise(table)], dtype=torch.int64)
    return (steps * changes).sum(-1) + constant(parties, steps[..., 0], table[0])


def _scaled_bound(bound: int, exponent: int) -> int:
    """C 2^(-j/2) (1 - 8e) with 26 fraction bits, rounded down."""
    shrunk = bound * (2**_BITS - 8)
    return math.isqrt(shrunk * shrunk >> exponent)


def _inverse_root(parties: Parties, v: Tensor) -> Tensor:
    """1/sqrt(v) for v in [1, 2), never above it by more than 4.3 units of 2^-26. 18 rounds.

    For v in [0, 1) something below 4 comes out, which the caller does not use.
    """
    start = constant(parties, v, 21 << _BITS) - 5 * v  # with 4 more fraction bits, exactly
    y = _newton(parties, v, start, _BITS + 4)
    return _newton(parties, v, y, _BITS)


def _newton(parties: Parties, v: Tensor, y: Tensor, bits: int) -> Tensor:
    """y (3 - v y^2)/2, y with ``bits`` fraction bits. 9 rounds."""
    square = multiply(parties, y, y, 2 * bits - _BITS, _NAME)
    rest = constant(parties, v, 3 << _BITS) - multiply(parties, v, square, _BITS, _NAME)
    return multiply(parties, y, rest, bits + 1, _NAME)
