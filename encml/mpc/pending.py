"""Protocols that take a product as it comes, in additive rows, and so save the rounds of resharing it first.

A protocol on a payload splits x into A, which party r knows, and B, which parties r + 1 and r + 2 both know. Rows give
the same split: with fresh masks that add up to zero, A = z_r is party r's own, and B = z_{r+1} + z_{r+2} is known to
the other two once they have told each other their rows, which travel with the protocol's first messages anyway. And
where two parties hold a term of x each, as after a selection or in the middle of a truncation, the next truncation can
start from those two terms. (The protocols themselves: see comparison.py and truncation.py.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from encml.mpc.circuits import Adder, carry
from encml.mpc.comparison import SecretBits
from encml.mpc.parties import Parties, flat, known
from encml.mpc.truncation import Division
from encml.net.transport import PARTIES, Message
from encml.ring.kernels.elementwise import NOTHING, Words, chosen_part, parts_less


def negative_rows(parties: Parties, rows: Tensor, bits: int, operation: str = "compare") -> SecretBits:
    """x < 0 for additive rows (P, *shape), for -2^(bits-1) <= x < 2^(bits-1), as ``comparison.negative``.

    As many rounds as that has (8 at 33 to 64 bits), and 16 B more an element in all.
    """
    r, shape, n = parties.next_lead(), tuple(rows.shape[1:]), math.prod(rows.shape[1:])
    masked = parties.masked_rows(rows)
    adder = Adder(parties, r, n, bits)
    if parties.plays(r):
        adder.first(masked[parties.row(r)])
    (got, *told) = parties.net.exchange([adder.message(), *_telling(parties, r, masked)], operation)
    side = r + 1 if parties.plays(r + 1) else r + 2
    if parties.plays(side):
        adder.second(masked[parties.row(side)], _told(r, side, told))
    p, g = adder.finish(got, operation)
    return SecretBits(carry(parties, g, p[:, :-1], operation) ^ p[:, -1], shape)


def select_rows(parties: Parties, bits: SecretBits, rows: Tensor, m: int, operation: str = "select") -> Tensor:
    """bit * x / 2^m for additive rows (P, *shape), |x| <= 2^62 - 2^m, as a fresh payload; rounded as ``truncate`` does.

    3 rounds and 58.25 B an element in all at m <= 16, as much as truncating first, which takes 5 rounds.

    With bit = a ^ b2, a known to party r and b2 to the other two (as in ``comparison.select``),
        bit * x = b2 (1 - a) A + (1 - b2) a A + b2 B + (1 - 2 b2) a B.
    Party r shares a, a A and (1 - a) A between parties r + 1 and r + 2 (round 1), which then hold a term each.
    """
    r, shape, n = parties.next_lead(), tuple(rows.shape[1:]), math.prod(rows.shape[1:])
    masked = parties.masked_rows(rows)
    one, plane = (r + 1) % PARTIES, bits.plane.numpy()
    masks, rest = parties.masks(r - 1, (3, n)), None
    if parties.plays(r):
        rest = np.empty((3, n), np.int64)
        held = parties.words(plane, r), parties.words(plane, r + 1)
        parts_less(*held, masked[parties.row(r)], NOTHING, known(masks).reshape(-1), rest.reshape(-1))
    division = Division(parties, one, n, m)
    sent = None if rest is None else torch.from_numpy(rest)
    dealt, *told, correction = parties.net.exchange(
        [Message(r, one, sent, (3, n), torch.int64), *_telling(parties, r, masked), division.message()], operation
    )
    part_of_one = None if dealt is None else dealt.numpy()
    for rank, parts, open_term in ((r + 1, part_of_one, division.open_first), (r + 2, masks, division.open_second)):
        if parties.plays(rank):
            term = np.empty(n, np.int64)
            part, kept, left = known(parts)
            own, other = masked[parties.row(rank)], _told(r, rank, told)
            chosen_part(parties.words(plane, r + 2), own, other, part, kept, left, term)
            open_term(term)
    e, d = parties.net.exchange(division.openings(), operation)
    return division.finish(correction, e, d, operation).view(parties.shares_here, *shape)


def scale_rows(parties: Parties, rows: Tensor, m: int, factor: int, n: int, operation: str = "truncate") -> Tensor:
    """factor * (x / 2^m) / 2^n for additive rows (P, *shape) and a public integer, as a fresh payload.

    Both divisions round as ``truncate`` does, for |x| <= 2^62 - 2^m and |factor| (|x| / 2^m + 1) <= 2^62 - 2^n.
    4 rounds and 28.5 B an element in all at m and n of at most 16, where one truncation after the other has 5 and 44.5:
    the second starts from the two terms that the first ends with, so that nothing is reshared between them.
    """
    p, shape, count = parties.next_lead(), tuple(rows.shape[1:]), math.prod(rows.shape[1:])
    masked = parties.masked_rows(rows)
    last, middle = (p + 2) % PARTIES, (p + 1) % PARTIES
    first, second = Division(parties, p, count, m), Division(parties, p, count, n)
    split = parties.masks(p, (count,))
    if parties.plays(p):
        first.open_first(masked[parties.row(p)])
    z = torch.from_numpy(masked[parties.row(last)]) if parties.plays(last) else None
    moved, *corrections = parties.net.exchange(
        [Message(last, middle, z, (count,), torch.int64), first.message(), second.message()], operation
    )
    if parties.plays(middle):
        first.open_second(masked[parties.row(middle)], flat(moved))
    e, d = parties.net.exchange(first.openings(), operation)
    # An even factor would leave the lowest bits of both terms known: party p's loses, the other's gets a common mask.
    if parties.plays(p):
        term = np.empty(count, np.int64)
        first.first_term(d, known(split), term, factor)
        second.open_first(term)
    if parties.plays(middle):
        term = np.empty(count, np.int64)
        first.second_term(corrections[0], e, known(split), term, -factor)
        second.open_second(term, minus=True)
    e, d = parties.net.exchange(second.openings(), operation)
    return second.finish(corrections[1], e, d, operation).view(parties.shares_here, *shape)


def _telling(parties: Parties, r: int, masked: Words) -> list[Message]:
    """Parties r + 1 and r + 2 tell each other their masked rows. 16 B an element in all."""
    one, two, shape = (r + 1) % PARTIES, (r + 2) % PARTIES, masked.shape[1:]
    own = {rank: torch.from_numpy(masked[parties.row(rank)]) for rank in (one, two) if parties.plays(rank)}
    return [
        Message(one, two, own.get(one), shape, torch.int64),
        Message(two, one, own.get(two), shape, torch.int64),
    ]


def _told(r: int, rank: int, told: list[Tensor | None]) -> Words:
    """What party ``rank``, r + 1 or r + 2, was told by the other: its masked row. told: what ``_telling`` brought."""
    return flat(told[1] if rank == r + 1 else told[0])
