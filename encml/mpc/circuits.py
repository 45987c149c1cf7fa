"""Boolean circuits on XOR-shared bit planes: what the bits of a shared number say.

Planes are (S, k, words): k planes of one bit an element each, see ``encml.ring.bits``. A gate costs one bit an element
and party, a level of gates one round; XOR and NOT are local.
"""

from __future__ import annotations

import torch
from torch import Tensor

from encml.mpc.multiplication import and_bits
from encml.mpc.parties import Parties, known
from encml.net.transport import PARTIES, Message
from encml.ring.bits import to_planes, words_for


def propagate_and_generate(parties: Parties, payload: Tensor, bits: int, operation: str) -> tuple[Tensor, Tensor]:
    """The low ``bits`` bits of x as a sum of two numbers: planes (S, bits, words) of p = A ^ B and of g = A & B.

    x = A + B with A = x_r + x_{r+1} known to party r and B = x_{r+2} known to parties r + 1 and r + 2; r takes turns.
    2 rounds, 24 bits an element for every bit, in all.

    1. Party r XOR-shares A: s0 = PRG with party r + 2, s1 = A ^ s0 to party r + 1. Propagate bits p = A ^ B are then
       the XOR shares (s0, s1, B), without a message.
    2. Generate bits g = A & B = (s0 & B) ^ (s1 & B): party r + 2 and party r + 1 have one term each and reshare.
    (Mohassel and Rindal 2018 for the adder on shares; the asymmetry is ours.)
    """
    r = parties.next_lead()
    planes = (bits, words_for(payload[0].numel()))
    s0 = parties.common(r - 1, planes)
    s1 = None
    if parties.plays(r):
        a = known(parties.share(payload, r)) + known(parties.share(payload, r + 1))
        s1 = to_planes(a.reshape(-1), bits) ^ known(s0)
    (got,) = parties.net.exchange([Message(r, (r + 1) % PARTIES, s1, planes, torch.int64)], operation)
    s1 = got if s1 is None else s1
    b = parties.share(payload, r + 2)
    b = None if b is None else to_planes(b.reshape(-1), bits)
    p = parties.assemble([s0, s1, b], r)

    low = bits - 1  # nothing asks for the carry out of the last bit
    left = known(s1)[:low] & known(b)[:low] if parties.plays(r + 1) else None
    right = known(s0)[:low] & known(b)[:low] if parties.plays(r + 2) else None
    return p, parties.reshare_pair(r + 1, left, right, (low, planes[1]), operation, xor=True)


def carry(parties: Parties, g: Tensor, p: Tensor, operation: str) -> Tensor:
    """The carry out of planes (S, k, words) of generate and propagate bits, lowest first: one plane (S, words).

    A prefix tree, (g, p) o (g', p') = (g ^ p g', p p'), half the width each level, the lowest group without its p: 118
    gates in 6 levels at k = 63.
    """
    while (k := g.shape[1]) > 1:
        pairs = k // 2
        high_p = p[:, 1 : 2 * pairs : 2]
        both = and_bits(
            parties,
            torch.cat([high_p, high_p[:, 1:]], 1),
            torch.cat([g[:, 0 : 2 * pairs : 2], p[:, 2 : 2 * pairs : 2]], 1),
            operation,
        )
        new_g, new_p = g[:, 1 : 2 * pairs : 2] ^ both[:, :pairs], both[:, pairs:]
        # The lowest group never needs its propagate bit: a plane of zeros keeps the indices aligned.
        new_p = torch.cat([torch.zeros_like(new_g[:, :1]), new_p], 1)
        g = torch.cat([new_g, g[:, 2 * pairs :]], 1)
        p = torch.cat([new_p, p[:, 2 * pairs :]], 1)
    return g[:, 0]


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
