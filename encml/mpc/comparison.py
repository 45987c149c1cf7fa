"""Signs of secrets, and what is chosen by them.

x = A + B with A = x_r + x_{r+1} known to party r and B = x_{r+2} known to parties r + 1 and r + 2: the asymmetry is
free, and all of this file lives on it. r takes turns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encml.mpc.circuits import carry, flipped, propagate_and_generate
from encml.mpc.parties import Parties, known
from encml.net.transport import PARTIES, Message
from encml.ring.bits import from_plane

WORD_BITS = 64


@dataclass(frozen=True, slots=True, repr=False)
class SecretBits:
    """One secret bit for every element of ``shape``, XOR-shared: a payload (S, words) of one bit plane."""

    plane: Tensor
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return f"SecretBits(shape={self.shape})"


def negative(parties: Parties, payload: Tensor, bits: int = WORD_BITS, operation: str = "compare") -> SecretBits:
    """x < 0 for every element: the most significant bit of a payload's values.

    8 rounds, 68 B an element in all, 22.7 B a party, at 64 bits; with a declared range -2^(bits-1) <= x < 2^(bits-1),
    fewer: 7 rounds and 32.4 B at 32 bits. ``bits`` is 2 to 64; beyond the declared range the result is meaningless.

    The carry into the top bit, of the sum of what party r knows and what parties r + 1 and r + 2 know: see
    ``encml.mpc.circuits``. (Mohassel and Rindal 2018 for the adder on shares.)
    """
    if not 2 <= bits <= WORD_BITS:
        raise ValueError(f"a declared range has 2 to {WORD_BITS} bits, found {bits}")
    p, g = propagate_and_generate(parties, payload, bits, operation)
    return SecretBits(carry(parties, g, p[:, :-1], operation) ^ p[:, -1], tuple(payload.shape[1:]))


def invert(parties: Parties, bits: SecretBits) -> SecretBits:
    """NOT of every bit. No communication."""
    return SecretBits(flipped(parties, bits.plane), bits.shape)


def to_arithmetic(parties: Parties, bits: SecretBits, operation: str = "compare") -> Tensor:
    """XOR-shared bits to a payload of 0 and 1 over Z_2^64. 2 rounds, 24 B an element in all.

    bit = a ^ b2 = b2 + (1 - 2 b2) a, with a known to party r, b2 to parties r + 1 and r + 2. Party r shares a between
    those two (round 1); then each term is known to one of them, and they reshare (round 2).
    """
    r = parties.next_lead()
    shape, n = bits.shape, math.prod(bits.shape)
    a = _first_bit(parties, bits, r, n)
    one, two = _hand_over(parties, r, a, (n,), operation)
    left = right = None
    if parties.plays(r + 1):
        b2 = _second_bit(parties, bits, r, n)
        left = b2 + (1 - 2 * b2) * known(one)
    if parties.plays(r + 2):
        right = (1 - 2 * _second_bit(parties, bits, r, n)) * known(two)
    payload = parties.reshare_pair(r + 1, left, right, (n,), operation)
    return payload.reshape(len(payload), *shape)


def select(
    parties: Parties,
    bits: SecretBits,
    payload: Tensor,
    operation: str = "select",
    runs: Sequence[int] | None = None,
) -> Tensor:
    """bit * x for every element, with no truncation. 2 rounds, 32 B an element in all.

    runs: lengths of runs along the first dimension to be added up; the result then has one entry for each of them, and
    the second round costs 16 B for every element of the result only.

    With bit = a ^ b2 as in ``to_arithmetic`` and x = A + B,

        bit * x = b2 A + b2 B + (1 - 2 b2) (a A + a B).

    Party r shares a and a A between parties r + 1 and r + 2 (round 1); then every term is known to one of them, and
    they reshare (round 2).
    """
    shape, n = bits.shape, math.prod(bits.shape)
    if tuple(payload.shape[1:]) != shape:
        raise ValueError(
            f"bits of shape {shape} select from values of shape {tuple(payload.shape[1:])}: expand one first"
        )
    r = parties.next_lead()
    dealt = None
    a = _first_bit(parties, bits, r, n)
    if a is not None:
        total = known(parties.share(payload, r)) + known(parties.share(payload, r + 1))
        dealt = torch.stack([a, a * total.reshape(-1)])
    one, two = _hand_over(parties, r, dealt, (2, n), operation)
    left = right = None
    if parties.plays(r + 1):
        b2, b = _second_bit(parties, bits, r, n), known(parties.share(payload, r + 2)).reshape(-1)
        part_of_a, part_of_product = known(one)
        own = known(parties.share(payload, r + 1)).reshape(-1)
        left = b2 * (own + b) + (1 - 2 * b2) * (part_of_product + part_of_a * b)
    if parties.plays(r + 2):
        b2, b = _second_bit(parties, bits, r, n), known(parties.share(payload, r + 2)).reshape(-1)
        part_of_a, part_of_product = known(two)
        own = known(parties.share(payload, r)).reshape(-1)
        right = b2 * own + (1 - 2 * b2) * (part_of_product + part_of_a * b)
    if runs is not None:
        left, right = _add_runs(left, shape, runs), _add_runs(right, shape, runs)
        shape = (len(runs), *shape[1:])
        n = math.prod(shape)
    chosen = parties.reshare_pair(r + 1, left, right, (n,), operation)
    return chosen.reshape(len(chosen), *shape)


def _add_runs(terms: Tensor | None, shape: tuple[int, ...], runs: Sequence[int]) -> Tensor | None:
    if terms is None or all(length == 1 for length in runs):
        return terms
    return torch.stack([part.sum(0) for part in torch.split(terms.view(shape), list(runs))]).view(-1)


def _first_bit(parties: Parties, bits: SecretBits, r: int, n: int) -> Tensor | None:
    """a, the part of every bit that party r knows, as 0 and 1 (n,); None elsewhere."""
    if not parties.plays(r):
        return None
    return from_plane(known(parties.share(bits.plane, r)) ^ known(parties.share(bits.plane, r + 1)), n)


def _second_bit(parties: Parties, bits: SecretBits, r: int, n: int) -> Tensor:
    """b2, the part of every bit that parties r + 1 and r + 2 know, as 0 and 1 (n,)."""
    return from_plane(known(parties.share(bits.plane, r + 2)), n)


def _hand_over(
    parties: Parties, r: int, values: Tensor | None, shape: tuple[int, ...], operation: str
) -> tuple[Tensor | None, Tensor | None]:
    """What party r knows, in two additive parts: party r + 1's and party r + 2's. 1 round, 8 B an element in all.

    Party r + 2's part is a mask that it draws with party r; party r + 1 gets the rest.
    """
    masks = parties.common(r - 1, shape)
    rest = None if values is None else values - known(masks)
    (got,) = parties.net.exchange([Message(r, (r + 1) % PARTIES, rest, shape, torch.int64)], operation)
    return (got if rest is None else rest), masks
