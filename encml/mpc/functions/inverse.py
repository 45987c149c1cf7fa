"""Division, reciprocal, roots and logarithm over the whole range: range reduction, then one polynomial.

With the exponent e of ``encml.mpc.functions.exponent`` every |x| = v 2^(e-1) with v in [1, 4]. Since 2^-e is a product
of two table entries, z = v/2 - 5/4 in [-3/4, 3/4] is had exactly, and a polynomial of degree 8 to 11 in z gives 1/v,
1/sqrt(v), sqrt(v) or log(v) within 2^-16 (2^-18 for sqrt(v) and log(v)) of itself. What 2^(e-1) makes of it is read
from tables again. In ring units:

    1/x = 2^(2f+1-e)/v     1/sqrt(x) = 2^((3f+1-e)/2)/sqrt(v)     sqrt(x) = 2^((f-1+e)/2) sqrt(v)
    log(x) = log(v) + (e-1-f) log 2                               n/x = n 2^(f+1-e)/v

Payloads are (S, *shape) at f fraction bits, inputs and results; nothing is revealed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from encml.mpc.circuits import flipped
from encml.mpc.comparison import SecretBits, negative, select
from encml.mpc.flags import packed, unpacked
from encml.mpc.functions.exponent import Exponents, Groups, Table, exponents
from encml.mpc.functions.polynomial import Fit, Polynomial, constant, multiply
from encml.mpc.lookup import lookup
from encml.mpc.multiplication import and_bits, product
from encml.mpc.parties import Parties
from encml.mpc.truncation import MAX_SHIFT, truncate, truncate_rows
from encml.ring.fixed import RANGE_BITS


def reciprocal(parties: Parties, payload: Tensor, fraction_bits: int) -> Tensor:
    """1/x, of either sign. 30 rounds, 191 B a party and element.

    Off by less than 2 ulp or 2^-14 of it. 1/0 is a positive number beyond 2^f, the reciprocal of the smallest number.
    """
    f, name, x = fraction_bits, "reciprocal", payload.reshape(len(payload), -1)
    e = exponents(parties, x, f, name, signed=True)
    size = e.groups.size
    more = -(2 * f + 2) % size  # more digits, so that the groups end where results end to matter
    digits = max(12, min(20, 56 - 2 * f - more))

    def scale(h: int) -> int:
        exponent = 2 * f + 2 + more - size * (h + 1)
        return 2 ** min(exponent, 60 - digits - size) if exponent >= 0 else 0

    lift, scales, place = e.read(parties, [lift_table(e), e.by_group(scale, odd=True), place_table(e)], name)
    lifts, scales = _products(parties, [(lift, place), (scales, place)], name)
    y = _inverse(parties, x, lifts, e, digits, name)
    return multiply(parties, y, scales, digits + more, name).view(payload.shape)


def rsqrt(parties: Parties, payload: Tensor, fraction_bits: int) -> Tensor:
    """1/sqrt(x) for x > 0. 27 rounds, 166 B a party and element.

    Off by less than 2 ulp or 2^-13 of it (f <= 20). x = 0 gives a number beyond 2^(f/2), the root of the smallest
    number's reciprocal; x < 0 gives 0.
    """
    f, name, x = fraction_bits, "rsqrt", payload.reshape(len(payload), -1)
    e = exponents(parties, x, f, name, signed=False)
    size, count = e.groups.size, e.groups.count
    room = 59 - (3 * f + 2) // 2
    digits = min(16, room // 2)
    table_bits = min(room - digits, MAX_SHIFT - digits)
    tables = [
        lift_table(e),
        place_table(e),
        e.by_group(lambda h: 2 ** (size * (count - 1 - h) // 2)),
        e.by_place(lambda place: _power(table_bits + (3 * f + 1 - size * (count - 1) - place) / 2)),
    ]
    lift, place, group_root, place_root = e.read(parties, tables, name)
    lifts, scales = _products(parties, [(lift, place), (group_root, place_root)], name)
    y = of_normal(parties, x, lifts, e, "1/sqrt(v)", digits, name)
    return multiply(parties, y, scales, digits + table_bits, name).view(payload.shape)


def sqrt(parties: Parties, payload: Tensor, fraction_bits: int) -> Tensor:
    """sqrt(x) for x >= 0; 0 for x < 0. 27 rounds, 166 B a party and element.

    Off by less than 2 ulp or 2^-13 of it; sqrt(0) = 0 exactly.
    """
    f, name, x = fraction_bits, "sqrt", payload.reshape(len(payload), -1)
    e = exponents(parties, x, f, name, signed=False, zero=False)
    size, digits, table_bits = e.groups.size, 15, 14
    tables = [
        lift_table(e),
        place_table(e),
        e.by_group(lambda h: 2 ** (size * h // 2)),
        e.by_place(lambda place: _power(table_bits + (f - 1 + place) / 2)),
    ]
    lift, place, group_root, place_root = e.read(parties, tables, name)
    lifts, scales = _products(parties, [(lift, place), (group_root, place_root)], name)
    y = of_normal(parties, x, lifts, e, "sqrt(v)", digits, name)
    return multiply(parties, y, scales, digits + table_bits, name).view(payload.shape)


def log(parties: Parties, payload: Tensor, fraction_bits: int) -> Tensor:
    """The natural logarithm of x > 0. 27 rounds, 153 B a party and element.

    Off by less than 2 ulp or 2^-13 of it. x <= 0 gives what is below the smallest number's logarithm, -f log 2, by 2 to
    3.
    """
    f, name, x = fraction_bits, "log", payload.reshape(len(payload), -1)
    e = exponents(parties, x, f, name, signed=False)
    size, scale = e.groups.size, min(56, f + MAX_SHIFT)
    unit = math.ldexp(math.log(2), scale)
    logs = e.by_group(lambda h: round(size * h * unit)) + e.by_place(lambda place: round(place * unit))
    lift, place, added = e.read(parties, [lift_table(e), place_table(e), logs], name)
    (lifts,) = _products(parties, [(lift, place)], name)
    fit = _fit("log(v)", 11, 20, scale)
    rows = fit.rows(parties, _normal(parties, x, lifts, e, 20, name), name)
    rows = rows + (added + constant(parties, x, -round((f + 1) * unit)))[: parties.here]
    return truncate_rows(parties, rows, scale - f, name).view(payload.shape)


def divide(parties: Parties, numerator: Tensor, divisor: Tensor, fraction_bits: int) -> Tensor:
    """n/x of two payloads, of any signs; x broadcasts to n's shape. 30 rounds, 294 B a party and element.

    Off by less than 2 ulp or 2^-12 of it (f >= 14; below, 2^(2-f) of it), without exception. Quotients beyond
    2^(61-2f) become plus or minus that, from half of it on: n is compared with x first, so that nothing wraps around.
    n/0 is the same, positive for n >= 0 and for many a small n < 0. Of a divisor that broadcasts only the comparison
    and the products with n are paid for every element of n, some 100 B.

    Why 2 ulp: with y = 1/v within 2^-16 of itself, rounded to f + 1 bits less the one of n's scale, the errors of y
    (v/8 and 1/8 ulp of a quotient of 1/8), of the scaled n (y/2) and of the last rounding (1) add up to less than 1.8.
    """
    f, name, shape = fraction_bits, "divide", numerator.shape
    x = divisor.reshape(len(divisor), -1)
    wide = divisor.reshape(len(divisor), *(1,) * (numerator.ndim - divisor.ndim), *divisor.shape[1:]).shape

    def spread(payload: Tensor) -> Tensor:
        expanded: Tensor = payload.view(wide).expand(-1, *shape[1:])
        return expanded

    groups = Groups.of(f)
    size, ends = groups.size, _branches(f, groups)

    def scales() -> tuple[Exponents, list[Tensor]]:
        e = exponents(parties, x, f, name, signed=True)
        tables = [
            e.by_group(partial(_shift_in, after=after, end=end, size=size), odd=True)
            for after, end in itertools.pairwise((-1, *ends))
        ]
        *parts, place = e.read(parties, [*tables, place_table(e)], name)
        return e, _products(parties, [(part, place) for part in parts], name)

    e: Exponents
    (e, parts), (bounded, below, above) = parties.together(
        scales, lambda: _bounded(parties, numerator, spread(x), f, name)
    )
    lifts = torch.zeros_like(x)
    for part, end in zip(parts, ends, strict=True):
        lifts += part << (groups.top - end)

    def sign() -> Tensor:
        if x[0].numel() == shape[1:].numel():
            return e.sign
        flags = unpacked(SecretBits(e.sign, (x[0].numel(),)))
        return packed(spread(flags)).plane

    def scaled() -> Tensor:
        # n 2^(f+2-e), which in its branch fits into the ring; rounded only where the divisor is beyond 1.
        jobs = [
            partial(_rescaled, parties, bounded, spread(part), end - f - 2, name)
            for part, end in zip(parts, ends, strict=True)
        ]
        total = torch.zeros_like(numerator)
        for term in parties.together(*jobs):
            total += term
        return total

    y, n, limit = parties.together(
        lambda: _inverse(parties, x, lifts, e, f, name),
        scaled,
        lambda: _limit(parties, below, above, sign(), shape[1:].numel(), f, name),
    )
    rows = product(parties, torch.mul, spread(y), n)
    rows += limit.view(shape)[: parties.here] << (f + 1)
    return truncate_rows(parties, rows, f + 1, name)


def _rescaled(parties: Parties, x: Tensor, y: Tensor, shift: int, name: str) -> Tensor:
    """``multiply`` by any shift: one beyond MAX_SHIFT, as of the last branch for f < 7, takes 2 rounds more."""
    if shift <= 0:
        return parties.reshare(product(parties, torch.mul, x, y) << -shift, name)
    once = multiply(parties, x, y, min(shift, MAX_SHIFT), name)
    return truncate(parties, once, shift - MAX_SHIFT, name) if shift > MAX_SHIFT else once


def _shift_in(h: int, after: int, end: int, size: int) -> int:
    """2^(end + 1 - s (h + 1)) for a group of exponents beyond ``after`` and up to ``end``, else 0."""
    return 2 ** (end + 1 - size * (h + 1)) if after < size * h <= end else 0


def _branches(f: int, groups: Groups) -> list[int]:
    """The last exponents of ranges within which n 2^(end - e) fits into the ring, where the quotient of n does."""
    ends = [min(2 * f // groups.size * groups.size - 1, groups.top)]
    while ends[-1] < groups.top:
        ends.append(min((ends[-1] + 1 + f) // groups.size * groups.size - 1, groups.top))
    return ends


_FACTOR = 3
"""Quotients count as too large from 1/2 to 3/4 of the limit on (f >= 6): a comparison with 3 |x| takes few bits."""


def _bounded(parties: Parties, n: Tensor, x: Tensor, f: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """n where |n/x| is within the range, else 0; and the planes of [n - K x < 0] and [n + K x < 0].

    |n| < K |x| if and only if the two differ. 12 rounds.
    """
    shift = min(RANGE_BITS - 2 * f - 3, MAX_SHIFT)  # 3 2^shift is 3/4 of 2^(61-2f)
    difference = _FACTOR * x
    short = truncate(parties, n, shift, name)
    bits = RANGE_BITS - f + _FACTOR.bit_length() + 1
    below, above = (
        signs.plane
        for signs in parties.together(
            lambda: negative(parties, short - difference, bits, name),
            lambda: negative(parties, short + difference, bits, name),
        )
    )
    chosen = select(parties, SecretBits(below ^ above, tuple(n.shape[1:])), n, name)
    return chosen, below, above


def _limit(parties: Parties, below: Tensor, above: Tensor, sign: Tensor, n: int, f: int, name: str) -> Tensor:
    """The range's end where ``below`` equals ``above``, negative if they differ from ``sign``; else 0. 3 rounds."""
    limit = 2 ** (RANGE_BITS - 1 - f) - 2
    either = flipped(parties, below ^ above)
    minus = and_bits(parties, either, below ^ sign, name)
    planes = torch.stack([minus, either ^ minus], 1)
    (payload,) = lookup(parties, planes, n, [[-limit, limit]], name)
    return payload


def lift_table(e: Exponents) -> Table:
    """Together with ``place_table``: 2^(top - e), by which |x| is brought to v 2^(top-1)."""
    groups = e.groups
    return e.by_group(lambda h: 2 ** (groups.size * (groups.count - 1 - h)), odd=True)


def place_table(e: Exponents) -> Table:
    return e.by_place(lambda place: 2 ** (e.groups.size - 1 - place))


def _power(exponent: float) -> int:
    return round(2**exponent)


def _products(parties: Parties, pairs: list[tuple[Tensor, Tensor]], name: str) -> list[Tensor]:
    """Exact products of payloads (S, n). 1 round, 8 B each."""
    left, right = (torch.stack(side, 1) for side in zip(*pairs, strict=True))
    return list(parties.reshare(product(parties, torch.mul, left, right), name).unbind(1))


def _normal(parties: Parties, x: Tensor, lifts: Tensor, e: Exponents, bits: int, name: str) -> Tensor:
    """z = v/2 - 5/4 at ``bits`` fraction bits. 3 rounds."""
    half = multiply(parties, x, lifts, e.groups.top - bits, name)
    return half - constant(parties, x, 5 << (bits - 2))


def of_normal(
    parties: Parties, x: Tensor, lifts: Tensor, e: Exponents, function: str, digits: int, name: str
) -> Tensor:
    """The function of v as a payload (S, n) at ``digits`` fraction bits. 12 rounds."""
    scale = digits + 32  # the most that a truncation takes for 4 bytes less than for more
    bits = (scale - 12) // 2
    z = _normal(parties, x, lifts, e, bits, name)
    return truncate_rows(parties, _fit(function, 8, bits, scale).rows(parties, z, name), scale - digits, name)


# fmt: off
_ADAPTED = (0.12744141, -0.3414968, -0.1091933, -0.19848633, -0.16455078,
            0.18164062, -0.6421735, -0.1860295, -1.09179688, 0.66992188)
# fmt: on
"""a, b, c, d, i, f, g, h, j, k of ``_inverse``: least squares of the relative error, the best of many random starts."""
_FINE = (1, 2, 6, 7)
"""Those that have all the bits that their term leaves them; the others multiply two secrets."""


def _inverse(parties: Parties, x: Tensor, lifts: Tensor, e: Exponents, digits: int, name: str) -> Tensor:
    """1/v within 2^-15.9 of itself: degree 10 in z for the four products of degree 8, one after the other. 15 rounds.

        w = z^2 (z^2 + a z) + b z,   u = w (c + d z + i z^2 + f w) + g z + h z^2,
        1/v = u (1 + j z + k z^2) + c_0 + c_1 z + c_2 z^2 + c_3 w

    (Polynomials with adapted coefficients: Knuth, The Art of Computer Programming 2, section 4.6.4.)
    """
    scale = digits + 32
    bits = (scale - 12) // 2
    fine = scale - bits
    z = _normal(parties, x, lifts, e, bits, name)
    a, b, c, d, i, f, g, h, j, k, *ends = _adapted(bits, scale)
    z2 = multiply(parties, z, z, bits, name)

    def step(left: Tensor, right: Tensor, rest: Tensor, shift: int) -> Tensor:
        return truncate_rows(parties, product(parties, torch.mul, left, right) + rest[: parties.here], shift, name)

    w = step(z2, (z2 << (fine - bits)) + a * z, b * z, fine)
    u = step(w, constant(parties, z, c) + d * z + i * z2 + f * w, g * z + h * z2, fine)
    rest = constant(parties, z, ends[0]) + ends[1] * z + ends[2] * z2 + ends[3] * w
    return step(u, constant(parties, z, 1 << fine) + j * z + k * z2, rest, scale - digits)


@cache
def _adapted(bits: int, scale: int) -> list[int]:
    """a to k and c_0 to c_3 as integers; the last four are fitted to the others as they are rounded."""
    fine, coarse = scale - bits, scale - 2 * bits
    integers = [round(math.ldexp(v, fine if place in _FINE else coarse)) for place, v in enumerate(_ADAPTED)]
    rounded = [math.ldexp(v, -(fine if place in _FINE else coarse)) for place, v in enumerate(integers)]
    a, b, c, d, i, f, g, h, j, k = rounded
    z = 0.75 * np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    v = 2 * z + 2.5
    w = z**2 * (z**2 + a * z) + b * z
    u = w * (c + d * z + i * z**2 + f * w) + g * z + h * z**2
    terms = np.stack([np.ones_like(z), z, z**2, w], 1)
    ends = np.linalg.lstsq(terms * v[:, None], 1 - v * u * (1 + j * z + k * z**2), rcond=None)[0]
    return integers + [
        round(math.ldexp(float(end), place)) for end, place in zip(ends, (scale, fine, fine, fine), strict=True)
    ]


_OF_V: Mapping[str, Fit] = {
    "1/sqrt(v)": lambda v: 1 / np.sqrt(v),
    "sqrt(v)": np.sqrt,
    "log(v)": np.log,
}


@cache
def _fit(function: str, degree: int, bits: int, scale: int) -> Polynomial:
    return Polynomial.fit(lambda z: _OF_V[function](2 * z + 2.5), 0.75, degree, bits, scale)
