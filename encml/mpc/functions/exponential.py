"""exp over the whole range: whole powers of two from tables, the rest from a polynomial.

exp(x) = 2^t with t = x log2(e) = n + 1/2 + w, n whole and w in [-1/2, 1/2). t is x times a public integer, not
rescaled: its fraction takes F = f + c bits. n comes from the six bits above them, as one-hot planes of two octal
digits, so that 2^n is the product of two table entries; then w = t - n - 1/2 is linear, and 2^(1/2 + w) a polynomial of
degree 4. The public factor is off by up to 2^-c of itself: exp(x) is 2^(t L) with L = 1 + that, and the table says
2^(n L).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from encml.mpc.circuits import bits_at, flipped, one_hot
from encml.mpc.comparison import negative
from encml.mpc.functions.polynomial import constant, multiply
from encml.mpc.lookup import lookup
from encml.mpc.multiplication import product
from encml.mpc.parties import Parties
from encml.mpc.truncation import truncate, truncate_rows
from encml.ring.fixed import RANGE_BITS

_NAME = "exp"
_W = 18
"""Fraction bits of w and its square."""
_SCALE = 48
_M = 16
"""Fraction bits of 2^(1/2 + w)."""
_PLANES = 8


def exp(parties: Parties, payload: Tensor, fraction_bits: int, *, nonpositive: bool = False) -> Tensor:
    """exp(x) of a payload (S, *shape) at f fraction bits, as such a payload. 21 rounds; reveals nothing.

    170 B a party and element; 140 B where all x <= 0 is known (``nonpositive``; else wrong). Off by less than 2 ulp or
    2^-12 of it. Results beyond 2^(62-2f), or 2^(46-f) where f < 16, become that, from 0.999 of it on; where exp(x) is
    below one unit, 2^-f, it is 0.
    """
    f, x = fraction_bits, payload.reshape(len(payload), -1)
    n = x[0].numel()
    extra = max(14, 31 - f)
    factor, places = round(math.ldexp(math.log2(math.e), extra)), f + extra
    # t + f is below 64 and, where the result is at least one unit, not negative.
    shifted = factor * x + constant(parties, x, f << places)
    # Before its last truncation the result has _M fraction bits more, which must fit as well.
    largest = RANGE_BITS - max(f, _M)
    highest = 0.0 if nonpositive else (largest - f) * math.log(2) - 0.001
    lowest = -f * math.log(2)

    def digits() -> Tensor:
        return bits_at(parties, shifted, places, 6, _NAME)

    def below() -> Tensor:
        return negative(parties, x - constant(parties, x, math.ceil(math.ldexp(lowest, f))), operation=_NAME).plane

    def above() -> Tensor:
        return negative(parties, constant(parties, x, int(math.ldexp(highest, f))) - x, operation=_NAME).plane

    bits, *outside = parties.together(digits, below, *([] if nonpositive else [above]))
    within = outside[0] if nonpositive else outside[0] ^ outside[1]
    low, high = parties.together(
        lambda: one_hot(parties, bits[:, :3], _NAME),
        lambda: one_hot(parties, bits[:, 3:], _NAME, mask=flipped(parties, within)),
    )
    # Planes of the low digit, of the high one, and of results that are too large.
    planes = torch.cat([low, high, *(plane[:, None] for plane in outside[1:])], 1)
    number = [*range(_PLANES), *(8 * digit for digit in range(_PLANES))]
    tables = [
        [*_low_powers(), *[0] * _PLANES],
        [*[0] * _PLANES, *_high_powers(f, factor, extra)],
        number,
    ]
    if not nonpositive:
        tables = [[*table, 0] for table in tables]
        tables.append([0] * 2 * _PLANES + [2**largest - 1])
    low_power, high_power, whole, *limit = lookup(parties, planes, n, tables, _NAME)
    w = shifted - (whole << places) - constant(parties, x, 1 << (places - 1))
    power, mantissa = parties.together(
        lambda: parties.reshare(product(parties, torch.mul, low_power, high_power), _NAME),
        lambda: _mantissa(parties, w, places),
    )
    result = multiply(parties, mantissa, power, _M, _NAME)
    if limit:
        result = result + limit[0]
    return result.view(payload.shape)


def _low_powers() -> list[int]:
    return [2**digit for digit in range(_PLANES)]


def _high_powers(f: int, factor: int, extra: int) -> list[int]:
    """2^(8 h), mended by what the public factor is off by at the middle of the eight n that it stands for."""
    off = math.log2(math.e) * math.ldexp(1, extra) / factor - 1
    return [round(2 ** (8 * h + off * (8 * h + 3.5 - f))) for h in range(_PLANES)]


def _mantissa(parties: Parties, w: Tensor, places: int) -> Tensor:
    """2^(1/2 + w) of a payload (S, n) at ``places`` fraction bits, as one at ``_M``. 6 rounds (8 if places > 31)."""
    if places > 31:
        w, places = truncate(parties, w, places - 31, _NAME), 31
    short, square = parties.together(
        lambda: truncate(parties, w, places - _W, _NAME),
        lambda: multiply(parties, w, w, 2 * places - _W, _NAME),
    )
    c = _coefficients()
    low = c[1] * short + c[2] * square + constant(parties, w, c[0])
    rows = product(parties, torch.mul, square, c[3] * short + c[4] * square) + low[: parties.here]
    return truncate_rows(parties, rows, _SCALE - _M, _NAME)


@cache
def _coefficients() -> list[int]:
    """2^(1/2 + w) = c_0 + c_1 w + ... + c_4 w^4 on [-1/2, 1/2], within 2^-18; fewer bits for the higher ones.

    Interpolation at Chebyshev's points, each coefficient rounded before the lower ones are fitted.
    """
    w = 0.5 * np.cos(np.pi * (np.arange(200) + 0.5) / 200)
    bits = [_SCALE, _SCALE - _W, _SCALE - _W, _SCALE - 2 * _W, _SCALE - 2 * _W]
    rounded = np.zeros(5)
    for k in (4, 3, 2, 1, 0):
        left = 2 ** (0.5 + w) - np.polynomial.polynomial.polyval(w, rounded)
        rounded[k] = np.ldexp(np.round(np.ldexp(np.polynomial.polynomial.polyfit(w, left, k)[k], bits[k])), -bits[k])
    return [int(np.ldexp(c, b)) for c, b in zip(rounded, bits, strict=True)]
