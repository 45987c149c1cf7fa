"""Clipping on shares: every vector scaled down to norm C if it is longer, and the weighted sum of what results.

The factor c = min(1, C/||x||) is computed in fixed point on one element a vector, and errs downwards only: c ||x|| <= C
holds without exception, since the sensitivity that differential privacy is accounted with rests on it. Everything is an
integer in ring units: C is the integer ``bound``, and c carries some fraction bits.

**How** (q = ||x||^2 < 2^top, J = top - 1):

1. Bits [q >= t] for t = C^2 and all 2^(k/2) between C^2 and 2^top place q in one interval, a half of [2^j, 2^(j+1)).
   They are decreasing in t, so any table T over the intervals is a public linear combination of them. Such tables give
       w = q 2^(J-j), exactly, in [2^J, 2^(J+1))       and       k_i = C 2^(-j/2) p_i     (p: see 2).
2. v = w/2^J in [1, 2) at 26 fraction bits, and c = k_0 + k_1 v + v^2 (k_2 + k_3 v): a cubic p(v) for 1/sqrt(v), one for
   each half of [1, 2), times C 2^(-j/2).
3. Rounded, less two units; where q < C^2 the table makes it exactly 1.

**Why c ||x|| <= C.** p has the values and slopes of f(v) = 1/sqrt(v) at two points a and b, so that f - p =
f(.)/24 (v-a)^2 (v-b)^2 >= 0 everywhere, f being positive. With e = 2^-26, the rounding of v (below e) moves p by
at most e/2, that of v^2 (below e) by at most e |p_2 + p_3 v| < e, and the coefficients' (at 32 bits) by less than e:
together below 2^-24. Rounding the sum to c's fraction bits adds less than one unit. Two units, of 2^-22 or more, are
taken off. Where that leaves less than 0, it is one unit or two, and ``_check`` makes sure that these are too short to
matter. From below, c falls short of C/||x|| by less than 3e-4 of it and four units.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from encml.errors import PrivacyError
from encml.mpc.comparison import negative, to_arithmetic
from encml.mpc.functions.polynomial import constant, multiply
from encml.mpc.multiplication import product
from encml.mpc.parties import Parties
from encml.mpc.sharing import public
from encml.mpc.truncation import truncate_rows
from encml.privacy.wraparound import SQUARE_BITS
from encml.ring.devices import beside
from encml.ring.kernels import matmul

FACTOR_BITS = 20
"""Fraction bits of a clipping factor."""
MIN_BOUND = 2**12
"""The smallest C in ring units for which the factor of the longest vector is not lost in rounding."""
MAX_FACTOR_BITS = 22

_BITS = 26
_COEFFICIENT_BITS = 32
_NAME = "clipping"


def squared_norms(parties: Parties, vectors: Tensor) -> Tensor:
    """||x||^2 of the vectors of a payload (S, n, d), as a payload (S, n). 1 round, 8 B a vector and party.

    Right modulo 2^64, and so only where the norm does not wrap: see ``encml.privacy.wraparound.accepted``.
    """
    rows = product(parties, lambda x, y: (x * y).sum(-1), vectors, vectors)
    return parties.reshare(rows, _NAME)


def clipping_factors(
    parties: Parties, squares: Tensor, bound: int, *, factor_bits: int = FACTOR_BITS, top: int = SQUARE_BITS
) -> Tensor:
    """c = min(1, bound/||x||) of payloads (S, n) of ||x||^2 in [0, 2^top), as a payload (S, n) at ``factor_bits``.

    c ||x|| <= bound always; c falls short of the exact factor by at most 3e-4 of it and four units. Reveals nothing.
    19 rounds, about 184 (top - 2 log2(bound)) + 120 B a vector in all.
    Raises PrivacyError for a bound (in ring units) that is beyond the square root of 2^(top - 1), or so small that the
    factor of the longest vector would be lost.
    """
    _check(bound, factor_bits, top)
    limits, tables = _tables(bound, factor_bits, top)
    distances = squares.unsqueeze(-1) - public(parties, torch.tensor(limits).expand(squares.shape[1], -1))
    less = to_arithmetic(parties, negative(parties, distances, operation=_NAME), _NAME)
    # Beyond the last limit no bit is 1, so each table is read from its end.
    changes = torch.tensor([[here - above for here, above in itertools.pairwise(table)] for table in tables])
    last = [constant(parties, squares, table[-1]) for table in tables]
    found = matmul(less, beside(less, changes.T)).unbind(-1)
    lift, k0, k1, k2, k3 = (total + end for total, end in zip(found, last, strict=True))

    v = multiply(parties, squares, lift, top - 1 - _BITS, _NAME)
    pair = torch.stack([v, k3], 1)
    square, cubic = multiply(parties, pair, v.unsqueeze(1).expand_as(pair), _BITS, _NAME).unbind(1)
    rows = product(parties, torch.mul, square, k2 + cubic) + product(parties, torch.mul, k1, v)
    rows += k0[: parties.here] << _BITS
    excess = _BITS + _COEFFICIENT_BITS - factor_bits
    return truncate_rows(parties, rows, excess, _NAME) - constant(parties, squares, _TAKEN_OFF)


def weighted_sum(parties: Parties, factors: Tensor, vectors: Tensor) -> Tensor:
    """sum_i c_i x_i of payloads (S, n) and (S, n, d), as additive rows (P, d), not masked. No communication.

    Exact: the result carries the fraction bits of both. Mask the rows before anybody else sees one.
    """
    return product(parties, matmul, factors, vectors)


def _check(bound: int, factor_bits: int, top: int) -> None:
    """Whether the factor of the longest vector, and two units of it, are in range."""
    largest = math.isqrt(2 ** (top - 1) - 1)
    least = math.ceil(math.ldexp(_TAKEN_OFF, (top + 1) // 2 - factor_bits))
    if not least <= bound <= largest or factor_bits > MAX_FACTOR_BITS:
        raise PrivacyError(
            f"a clipping norm of {bound} ring units: {least} to {largest} are possible with factors of {factor_bits} "
            f"bits, of which {MAX_FACTOR_BITS} are possible; choose other fraction bits or another norm"
        )


def _tables(bound: int, factor_bits: int, top: int) -> tuple[list[int], list[list[int]]]:
    """The limits between the intervals, and by interval: the lift to 2^(top-1), and the coefficients k_0 to k_3."""
    first = bound * bound
    # 2^(k/2), rounded up, starts interval k.
    starts = {k: math.isqrt((1 << k) - 1) + 1 for k in range(1, 2 * top)}
    lowest = max(k for k, start in starts.items() if start <= first)
    intervals = range(lowest, 2 * top)
    limits = [first, *(starts[k] for k in intervals[1:])]
    one = (2**factor_bits + _TAKEN_OFF) << (_COEFFICIENT_BITS - factor_bits)
    entries = [[0, one, 0, 0, 0]]
    for k in intervals:
        scale = math.ldexp(bound * 2 ** (-(k // 2) / 2), _COEFFICIENT_BITS)
        entries.append([2 ** (top - 1 - k // 2), *(math.floor(scale * p) for p in _CUBICS[k % 2])])
    return limits, [list(column) for column in zip(*entries, strict=True)]


def _cubic(low: float, high: float) -> list[float]:
    """The cubic, lowest coefficient first, that touches 1/sqrt(v) from below at two points of [low, high]."""
    middle, reach = (low + high) / 2, (high - low) / math.sqrt(8)  # where Chebyshev's T_2 vanishes
    conditions, values = [], []
    for v in (middle - reach, middle + reach):
        conditions += [[1, v, v**2, v**3], [0, 1, 2 * v, 3 * v**2]]
        values += [v**-0.5, -0.5 * v**-1.5]
    return [float(p) for p in np.linalg.solve(np.array(conditions), np.array(values))]


_TAKEN_OFF = 2
_CUBICS = (_cubic(1.0, math.sqrt(2)), _cubic(math.sqrt(2), 2.0))
