"""Roots of sums of squares: of and with more fraction bits than other numbers have.

A variance, and the eps that is added to it, have most of their digits below 2^-f; the inverse root of it is a factor
of much larger numbers. As in ``encml.mpc.functions.inverse``, with v in [1, 4] and x = v 2^(e-1) in ring units at b
fraction bits, a result at R fraction bits is

    1/sqrt(x): 2^(R + (b+1-e)/2) / sqrt(v)         sqrt(x): 2^(R + (e-1-b)/2) sqrt(v)

but b and R are free, and x may be anything below 2^58. A smallest x that is known in advance bounds the power of two,
and so leaves the bits that the largest possible factor would need to the digits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from encml.mpc.functions.exponent import Exponents, exponents
from encml.mpc.functions.inverse import lift_table, of_normal, place_table
from encml.mpc.functions.polynomial import multiply
from encml.mpc.multiplication import product
from encml.mpc.parties import Parties
from encml.mpc.truncation import truncate
from encml.ring.fixed import RANGE_BITS

RADICAND_BITS = 58
"""Ring units of radicands are below 2^58."""
_WHOLE_RANGE = RANGE_BITS - RADICAND_BITS
_TABLE_BITS = 20


def inverse_root(parties: Parties, payload: Tensor, bits: int, result_bits: int, least: float) -> Tensor:
    """1/sqrt(x) at ``result_bits`` for x >= ``least`` > 0 at ``bits``. 27 rounds, 196 B a party and element.

    Off by less than 2^-result_bits, or 2^-15 of it (2^-13 where least < 2^-20). What is below ``least``, 0 too, gives
    some positive number not beyond 16 / sqrt(least).
    """
    name, x = "inverse_root", payload.reshape(len(payload), -1)
    e = exponents(parties, x, _WHOLE_RANGE, name, signed=False)
    lowest = max(0, math.floor(math.log2(least) + bits) - 1)
    groups = e.groups
    half, first = groups.size // 2, lowest // groups.size
    highest = result_bits + math.ceil((bits + 1 - first * groups.size) / 2)
    digits, surplus = _digits(highest)
    powers = [half * (groups.count - 1 - max(h, first)) for h in range(groups.count)]
    base = result_bits + surplus + (bits + 1) / 2 - half * (groups.count - 1)
    return _of(parties, x, e, "1/sqrt(v)", powers, -0.5, base, digits, surplus, name).view(payload.shape)


def root(parties: Parties, payload: Tensor, bits: int, result_bits: int) -> Tensor:
    """sqrt(x) at ``result_bits`` for x >= 0 at ``bits``, exactly 0 for 0. 27 rounds, 196 B a party and element.

    Off by less than 2^-result_bits or 2^-15 of it, of which the result must leave the digits room: below
    2^(46 - result_bits).
    """
    name, x = "root", payload.reshape(len(payload), -1)
    e = exponents(parties, x, _WHOLE_RANGE, name, signed=False, zero=False)
    half = e.groups.size // 2
    highest = result_bits + math.ceil((RADICAND_BITS - bits) / 2)
    digits, surplus = _digits(highest)
    powers = [half * h for h in range(e.groups.count)]
    base = result_bits + surplus - (bits + 1) / 2
    return _of(parties, x, e, "sqrt(v)", powers, 0.5, base, digits, surplus, name).view(payload.shape)


def _digits(highest: int) -> tuple[int, int]:
    """Fraction bits of the polynomial's value, and those of its factor beyond the result's."""
    left = RANGE_BITS - 3 - highest  # of 0 the polynomial makes up to 4
    surplus = min(8, max(2, left // 4))
    return min(20, left - surplus), surplus


def _of(
    parties: Parties,
    x: Tensor,
    e: Exponents,
    function: str,
    powers: list[int],
    step: float,
    base: float,
    digits: int,
    surplus: int,
    name: str,
) -> Tensor:
    """The function of v times 2^(powers[h] + step * l + base), without the surplus bits."""
    places = max(math.floor(base), _TABLE_BITS)
    tables = [
        lift_table(e),
        place_table(e),
        e.by_group(lambda h: 2 ** powers[h]),
        e.by_place(lambda place: round(2 ** (places + base - math.floor(base) + step * place))),
    ]
    lift, place, of_group, of_place = e.read(parties, tables, name)
    pairs = torch.stack([lift, of_group], 1), torch.stack([place, of_place], 1)
    lifts, factors = parties.reshare(product(parties, torch.mul, *pairs), name).unbind(1)
    excess = places - math.floor(base)

    def scaled() -> Tensor:
        return truncate(parties, factors, excess, name) if excess else factors

    y, factor = parties.together(lambda: of_normal(parties, x, lifts, e, function, digits, name), scaled)
    return multiply(parties, y, factor, digits + surplus, name)
