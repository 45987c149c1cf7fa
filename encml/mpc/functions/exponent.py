"""The leading digit of a secret number: its size as a power of two, without computing the number's bits.

x = A + B as in ``encml.mpc.circuits``, with propagate bits p, generate bits g and neither k = NOT (p OR g). The leading
zeros of a number x >= 0 come of p ... p g k ... k or k ... k: every other pair of neighbours ends them. So

    F_i = p_{i+1} XOR NOT k_i = p_{i+1} ^ p_i ^ g_i            (local: XORs of what is there)

is 1 for the first time, from the top, at i or one above i = the position of x's leading one, whatever carry comes in
from below (leading-one anticipation, as in floating-point adders: Schmookler and Nowka 2001, "Leading zero anticipation
and detection"; on shares it saves computing all carries before the first one can be looked for). For x < 0 the leading
ones end likewise with F_i = p_{i+1} XOR NOT g_i.

With e = i + 1, or 0 where no F_i is 1,

    2^(e-1) <= |x| <= 2^(e+1)      but for x = 0 (e = 0).

e is one-hot, in two parts: e = group h (one of G) and place l in the group (one of s), read as XORs of neighbouring OR
prefixes. A power of 2^e is then the product of two tables of G and s entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from encml.mpc.circuits import any_above, carry, flipped, propagate_and_generate
from encml.mpc.functions.polynomial import constant
from encml.mpc.lookup import lookup
from encml.mpc.multiplication import and_bits
from encml.mpc.parties import Parties
from encml.ring.fixed import RANGE_BITS


@dataclass(frozen=True)
class Groups:
    """How the exponents of numbers at f fraction bits are split: e = size * h + l, h < count."""

    size: int
    count: int

    @classmethod
    def of(cls, fraction_bits: int) -> Groups:
        """The split with the fewest entries: even size, no larger than f, size * count at most 60."""
        slots = RANGE_BITS - fraction_bits + 1
        fits = [cls(size, -(-slots // size)) for size in range(4, min(fraction_bits, 8) + 1, 2)]
        return min((g for g in fits if g.size * g.count <= 60), key=lambda g: g.size + g.count)

    @property
    def top(self) -> int:
        """The largest exponent that there is an entry for."""
        return self.size * self.count - 1


@dataclass(frozen=True, repr=False)
class Exponents:
    """The exponents e of a payload's n values as one-hot planes: groups of positive values, of negative ones, places.

    Where every value has an exponent (``signed``), the first plane of all groups and the first of the places are left
    out: where no other is 1, they are. ``sign`` is the plane of [x < 0].
    """

    groups: Groups
    planes: Tensor
    n: int
    signed: bool
    sign: Tensor

    def read(self, parties: Parties, tables: list[Table], operation: str) -> list[Tensor]:
        """The entries of ``tables`` chosen by e, a payload (S, n) each. 2 rounds; see ``lookup``."""
        firsts = torch.tensor([table.first for table in tables])
        sums = lookup(parties, self.planes, self.n, [table.steps for table in tables], operation)
        return [total + constant(parties, total, int(first)) for total, first in zip(sums, firsts, strict=True)]

    def by_group(self, value: Callable[[int], int], odd: bool = False) -> Table:
        """A table that gives value(h); with ``odd``, its negative where x < 0."""
        values = [value(h) for h in range(self.groups.count)]
        if not self.signed:
            return Table(0, values + [0] * self.groups.size)
        first, *others = values + [-v if odd else v for v in values]
        return Table(first, [v - first for v in others] + [0] * (self.groups.size - 1))

    def by_place(self, value: Callable[[int], int]) -> Table:
        """A table that gives value(l)."""
        values = [value(place) for place in range(self.groups.size)]
        if not self.signed:
            return Table(0, [0] * self.groups.count + values)
        return Table(values[0], [0] * (2 * self.groups.count - 1) + [v - values[0] for v in values[1:]])


@dataclass(frozen=True)
class Table:
    """A public table as what it gives for the planes left out, and what each of the others adds."""

    first: int
    steps: list[int]

    def __add__(self, other: Table) -> Table:
        return Table(self.first + other.first, [a + b for a, b in zip(self.steps, other.steps, strict=True)])


def exponents(
    parties: Parties, payload: Tensor, fraction_bits: int, operation: str, *, signed: bool, zero: bool = True
) -> Exponents:
    """The exponents of a payload (S, n) with |x| < 2^(62 - f). 9 rounds, 49 B a party and element signed, 33 B else.

    signed: of |x|. Else of x, and where x < 0 no plane is 1, so that every table gives 0.
    zero: whether x = 0 has the exponent 0 or, if not signed, no plane that is 1.
    """
    n = payload[0].numel()
    count = RANGE_BITS - fraction_bits
    p, g = propagate_and_generate(parties, payload, count + 2, operation)  # the last one is the sign
    ends = p[:, 1 : count + 1] ^ p[:, :count] ^ g[:, :count]
    ends_of_ones = flipped(parties, p[:, 1 : count + 1] ^ g[:, :count])
    jobs: list[Callable[[], Tensor]] = [
        lambda: carry(parties, g, p[:, :-1], operation) ^ p[:, -1],
        lambda: any_above(parties, ends, operation),
    ]
    if signed:
        jobs.append(lambda: any_above(parties, ends_of_ones, operation))
    sign, *reached = parties.together(*jobs)
    groups = Groups.of(fraction_bits)
    by_group, by_place = _split(parties, reached[0], groups, zero)
    minus = sign[:, None]
    plus = flipped(parties, minus)
    if signed:
        other_group, other_place = _split(parties, reached[1], groups, zero)
        values = torch.cat([by_group[:, 1:], other_group, (by_place ^ other_place)[:, 1:]], 1)
        masks = [_repeat(plus, groups.count - 1), _repeat(minus, groups.count + groups.size - 1)]
        planes = and_bits(parties, values, torch.cat(masks, 1), operation)
        planes[:, 1 - groups.size :] ^= by_place[:, 1:]
    else:
        values = torch.cat([by_group, by_place], 1)
        planes = and_bits(parties, values, plus.expand_as(values), operation)
    return Exponents(groups, planes, n, signed, sign)


def _split(parties: Parties, reached: Tensor, groups: Groups, zero: bool) -> tuple[Tensor, Tensor]:
    """OR prefixes (S, k, words) to one-hot planes by group (S, G, words) and by place (S, s, words). Local."""
    k = reached.shape[1]
    slots = torch.zeros((len(reached), groups.size * groups.count, reached.shape[2]), dtype=torch.int64)
    slots[:, 1 : k + 1] = reached
    slots[:, 1:k] ^= reached[:, 1:]
    if zero:
        slots[:, :1] = flipped(parties, reached[:, :1])
    table = slots.view(len(slots), groups.count, groups.size, -1)
    return _xor(table, 2), _xor(table, 1)


def _xor(planes: Tensor, dim: int) -> Tensor:
    first, *rest = planes.unbind(dim)
    total = first.clone()
    for plane in rest:
        total ^= plane
    return total


def _repeat(plane: Tensor, count: int) -> Tensor:
    return plane.expand(-1, count, -1)
