"""Signs of secrets, and what is chosen by them.

x = A + B with A = x_r + x_{r+1} known to party r and B = x_{r+2} known to parties r + 1 and r + 2: the asymmetry is
free, and all of this file lives on it. r takes turns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from encml.mpc.circuits import carry, flipped, propagate_and_generate
from encml.mpc.parties import Parties, known
from encml.net.transport import PARTIES, Message
from encml.ring.devices import host
from encml.ring.kernels.elementwise import (
    NOTHING,
    Words,
    bits_less,
    chosen_less,
    parts_less,
    run_sums_less,
    turned_less,
)

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
    plane, rest = bits.plane.numpy(), None
    masks = parties.masks(r - 1, (n,))
    if parties.plays(r):
        rest = np.empty(n, np.int64)
        bits_less(parties.words(plane, r), parties.words(plane, r + 1), n, known(masks), rest)
    rest = hand_over(parties, r, rest, (n,), operation)
    pair = parties.pair(r + 1, (n,))
    if pair.left is not None:
        turned_less(parties.words(plane, r + 2), n, known(rest), True, known(pair.low), pair.left)
    if pair.right is not None:
        turned_less(parties.words(plane, r + 2), n, known(masks), False, known(pair.high), pair.right)
    return pair.reshare(operation).view(parties.shares_here, *shape)


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
    plane, values, rest = bits.plane.numpy(), host(payload), None
    masks = parties.masks(r - 1, (2, n))
    if parties.plays(r):
        rest = np.empty((2, n), np.int64)
        inputs = (parties.words(array, index) for array in (plane, values) for index in (r, r + 1))
        parts_less(*inputs, known(masks).reshape(-1), rest.reshape(-1))
    rest = hand_over(parties, r, rest, (2, n), operation)
    summed = runs is not None and any(length != 1 for length in runs)
    result = (len(runs), *shape[1:]) if runs is not None else shape
    pair = parties.pair(r + 1, (math.prod(result),))
    for to, mask, own, parts in ((pair.left, pair.low, r + 1, rest), (pair.right, pair.high, r, masks)):
        if to is None:
            continue
        shares = parties.words(values, own), parties.words(values, r + 2)
        terms, less = (np.empty(n, np.int64), NOTHING) if summed else (to, known(mask))
        chosen_less(parties.words(plane, r + 2), *shares, own == r + 1, *known(parts), less, terms)
        if summed:
            run_sums_less(terms, np.array(runs, np.int64), known(mask), to)
    return pair.reshare(operation).view(parties.shares_here, *result)


def hand_over(parties: Parties, r: int, rest: Words | None, shape: tuple[int, ...], operation: str) -> Words | None:
    """What party r shares between parties r + 1 and r + 2: 1 round, 8 B an element in all.

    Party r + 2's part is a mask that it draws with party r; party r + 1's is ``rest``, which party r sends it. Returns
    party r + 1's, None where that party does not live.
    """
    sent = None if rest is None else torch.from_numpy(rest)
    (got,) = parties.net.exchange([Message(r, (r + 1) % PARTIES, sent, shape, torch.int64)], operation)
    if rest is None and got is not None:
        got_words: Words = got.numpy()
        return got_words
    return rest
