"""Boolean circuits on XOR-shared bit planes: what the bits of a shared number say.

Planes are (S, k, words): k planes of one bit an element each, see ``encml.ring.bits``. A gate costs one bit an element
and party, a level of gates one round; XOR and NOT are local.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from encml.mpc.multiplication import and_bits
from encml.mpc.parties import Parties, known
from encml.net.transport import PARTIES, Message
from encml.ring.bits import words_for
from encml.ring.devices import host
from encml.ring.kernels.elementwise import NOTHING, Words, and_with, carry_gates, carry_merge, planes_of


def propagate_and_generate(parties: Parties, payload: Tensor, bits: int, operation: str) -> tuple[Tensor, Tensor]:
    """The low ``bits`` bits of x as a sum of two numbers: planes (S, bits, words) of p = A ^ B and of g = A & B.

    x = A + B with A = x_r + x_{r+1} known to party r and B = x_{r+2} known to parties r + 1 and r + 2; r takes turns.
    2 rounds, 24 bits an element for every bit, in all.

    1. Party r XOR-shares A: s0 = PRG with party r + 2, s1 = A ^ s0 to party r + 1. Propagate bits p = A ^ B are then
       the XOR shares (s0, s1, B), without a message.
    2. Generate bits g = A & B = (s0 & B) ^ (s1 & B): party r + 2 and party r + 1 have one term each and reshare.
    (Mohassel and Rindal 2018 for the adder on shares; the asymmetry is ours.)
    """
    r, values = parties.next_lead(), host(payload)
    adder = Adder(parties, r, math.prod(payload.shape[1:]), bits)
    if parties.plays(r):
        adder.first(parties.words(values, r), parties.words(values, r + 1))
    if parties.place_of(r + 2) is not None:
        adder.second(parties.words(values, r + 2))
    (got,) = parties.net.exchange([adder.message()], operation)
    return adder.finish(got, operation)


class Adder:
    """The low ``bits`` bits of n numbers x = A + B on the way to planes, as in ``propagate_and_generate``.

    ``first`` gives A, at party r, before ``message``, which goes with any round; ``second`` gives B, at the other two,
    before ``finish``, which takes what the message brought and one more round.
    """

    __slots__ = ("_b", "_bits", "_p", "_parties", "_r", "_s0", "_s1")

    def __init__(self, parties: Parties, r: int, n: int, bits: int) -> None:
        self._parties, self._r, self._bits = parties, r, bits
        self._p: Words = np.empty((parties.shares_here, bits, words_for(n)), np.int64)
        places = (parties.place_of(r + k) for k in range(PARTIES))
        self._s0, self._s1, self._b = (None if place is None else self._p[place] for place in places)
        if self._s0 is not None:
            parties.masks(r - 1, self._s0.shape, to=self._s0)

    def first(self, one: Words, two: Words = NOTHING) -> None:
        """A = one + two, XOR-shared between parties r + 1 and r + 2 by the mask s0."""
        planes_of(one, two, known(self._s0).reshape(-1), self._bits, known(self._s1).reshape(-1))

    def second(self, one: Words, two: Words = NOTHING) -> None:
        """B = one + two."""
        planes_of(one, two, NOTHING, self._bits, known(self._b).reshape(-1))

    def message(self) -> Message:
        """s1, from party r to party r + 1."""
        r, shape = self._r % PARTIES, self._p.shape[1:]
        s1 = torch.from_numpy(known(self._s1)) if self._parties.plays(r) else None
        return Message(r, (r + 1) % PARTIES, s1, shape, torch.int64)

    def finish(self, got: Tensor | None, operation: str) -> tuple[Tensor, Tensor]:
        """(p, g), after one round."""
        r, s0, s1, b = self._r, self._s0, self._s1, self._b
        if s1 is not None and not self._parties.plays(r):
            s1[...] = known(got).numpy()
        low = self._bits - 1  # nothing asks for the carry out of the last bit
        pair = self._parties.pair(r + 1, (low, self._p.shape[2]))
        if pair.left is not None:
            and_with(known(s1)[:low].reshape(-1), known(b)[:low].reshape(-1), known(pair.low), pair.left)
        if pair.right is not None:
            and_with(known(s0)[:low].reshape(-1), known(b)[:low].reshape(-1), known(pair.high), pair.right)
        return torch.from_numpy(self._p), pair.reshare(operation, xor=True)


def carry(parties: Parties, g: Tensor, p: Tensor, operation: str) -> Tensor:
    """The carry out of planes (S, k, words) of generate and propagate bits, lowest first: one plane (S, words).

    A prefix tree, (g, p) o (g', p') = (g ^ p g', p p'), half the width each level, the lowest group without its p: 118
    gates in 6 levels at k = 63.

    Between levels, planes k - 1 + j are group j's generate bits and planes k - 1 - j its propagate bits, but for j = 0:
    so the gates of a level are a run of planes in what the next one reads, and nothing is copied there.
    """
    shares, k, words = g.shape
    if k == 1:
        return g[:, 0]
    generate, propagate = ([share.ravel() for share in planes.numpy()] for planes in (g, p))
    first_g, first_p, step = 0, 0, 1
    while k > 1:
        pairs, odd = divmod(k, 2)
        state: Words = np.empty((shares, 2 * (pairs + odd) - 1, words), np.int64)
        gates, masks = parties.mask_rows((2 * pairs - 1, words), state[:, odd : odd + 2 * pairs - 1])
        for i, own, previous in masks:
            after = (i + 1) % shares
            inputs = generate[i], generate[after], propagate[i], propagate[after]
            carry_gates(*inputs, first_g, first_p, step, pairs, words, own, previous)
        parties.pass_back(gates, operation)
        planes = [share.reshape(-1) for share in state]
        for share, old_g, old_p in zip(planes, generate, propagate, strict=True):
            carry_merge(old_g, old_p, first_g, first_p, step, k, words, share)
        generate = propagate = planes
        k = pairs + odd
        first_g, first_p, step = k - 1, k - 1, -1
    return torch.from_numpy(state[:, 0])


def carries(parties: Parties, g: Tensor, p: Tensor, operation: str) -> tuple[Tensor, Tensor]:
    """(G, P) of every prefix of planes (S, k, words), lowest first: whether it generates, and propagates, a carry.

    Sklansky's prefix network: ceil(log2 k) levels of k gates.
    """
    g, p = g.clone(), p.clone()
    k = g.shape[1]
    span = 1
    while span < k:
        upper = [i for i in range(k) if i & span]
        lower = [i // span * span - 1 for i in upper]
        both = and_bits(
            parties,
            torch.cat([p[:, upper], p[:, upper]], 1),
            torch.cat([g[:, lower], p[:, lower]], 1),
            operation,
        )
        g[:, upper] ^= both[:, : len(upper)]
        p[:, upper] = both[:, len(upper) :]
        span *= 2
    return g, p


def bits_at(parties: Parties, payload: Tensor, low: int, count: int, operation: str) -> Tensor:
    """Bits ``low`` to ``low + count - 1`` of a payload's values modulo 2^64, as planes (S, count, words).

    The carry out of the bits below and the carries within run side by side: 3 + max(log2 low, log2 count) rounds.
    """
    p, g = propagate_and_generate(parties, payload, low + count, operation)
    wanted = p[:, low:].clone()
    if low == 0:
        if count > 1:
            wanted[:, 1:] ^= carries(parties, g, p[:, : count - 1], operation)[0]
        return wanted
    if count == 1:
        wanted[:, 0] ^= carry(parties, g, p[:, :low], operation)
        return wanted
    into, (generated, propagated) = parties.together(
        lambda: carry(parties, g[:, :low], p[:, :low], operation),
        lambda: carries(parties, g[:, low:], p[:, low:-1], operation),
    )
    passed = and_bits(parties, propagated, into[:, None].expand_as(propagated), operation)
    wanted[:, 0] ^= into
    wanted[:, 1:] ^= generated ^ passed
    return wanted


def any_above(parties: Parties, planes: Tensor, operation: str) -> Tensor:
    """For every plane of (S, k, words) the OR of it and all later ones. ceil(log2 k) rounds of k/2 gates."""
    result = planes.flip(1)
    k = planes.shape[1]
    span = 1
    while span < k:
        upper = [i for i in range(k) if i & span]
        lower = [i // span * span - 1 for i in upper]
        first, second = result[:, upper], result[:, lower]
        result[:, upper] = first ^ second ^ and_bits(parties, first, second, operation)
        span *= 2
    return result.flip(1)


def one_hot(parties: Parties, bits: Tensor, operation: str, mask: Tensor | None = None) -> Tensor:
    """Planes (S, k, words) of a k-bit number, lowest first, to (S, 2^k, words): plane i is [number = i].

    mask: a plane (S, words); where it is 0 all planes are 0. ceil(log2 k) rounds, or ceil(log2 (k + 1)) with a mask.
    """
    k = bits.shape[1]
    if k == 1:
        upper = bits if mask is None else and_bits(parties, bits, mask[:, None], operation)
        lower = flipped(parties, bits) if mask is None else upper ^ mask[:, None]
        return torch.cat([lower, upper], 1)
    half = (k + 1) // 2
    low, high = parties.together(
        lambda: one_hot(parties, bits[:, :half], operation),
        lambda: one_hot(parties, bits[:, half:], operation, mask),
    )
    # The last plane of low is what the others leave of 1.
    first = low[:, None, :-1].expand(-1, high.shape[1], -1, -1)
    both = and_bits(parties, first, high[:, :, None].expand_as(first), operation)
    rest = high
    for i in range(both.shape[2]):
        rest = rest ^ both[:, :, i]
    return torch.cat([both, rest[:, :, None]], 2).flatten(1, 2)


def flipped(parties: Parties, planes: Tensor) -> Tensor:
    """NOT of XOR-shared planes: share 0 is flipped by those who hold it. No communication."""
    planes = planes.clone()
    share = parties.share(planes, 0)
    if share is not None:
        share.bitwise_not_()
    return planes
