"""The largest of several secrets, and which one it is.

A tournament in groups: in each group every candidate meets every other, all in one batch of comparisons, and the
winners meet again in the next level. Groups of two are a knock-out tournament, with the fewest comparisons (k - 1) and
the most rounds; one group of all k has the fewest rounds and k (k - 1) / 2 comparisons.

Candidate i beats j > i unless x_i < x_j, so the first of equals wins, and every group has exactly one winner:
    won_i = AND_{j > i} NOT [x_i < x_j]  AND  AND_{j < i} [x_j < x_i],    won_last = 1 XOR all others.
Its value comes by one selection whose terms are added up before they are reshared:
    x_last + sum_i won_i (x_i - x_last).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from itertools import pairwise

import torch
from torch import Tensor

from encml.mpc import comparison
from encml.mpc.comparison import WORD_BITS, SecretBits
from encml.mpc.costs import COSTS
from encml.mpc.flags import both, inverted, packed, unpacked
from encml.mpc.parties import Parties

BYTES_A_ROUND = 8192
"""What a round is worth, in bytes that a party sends, when the size of the groups is chosen: about 100 us of either."""


def maximum(
    parties: Parties, payload: Tensor, *, group: int | None = None, bits: int = WORD_BITS, operation: str = "max"
) -> Tensor:
    """The largest of k secrets, n times side by side: (S, k, n) to (S, n), at the same fraction bits.

    group: how many candidates meet in one batch, 2 to k; default: what ``best_group`` chooses by k and n.
    bits: a declared range of the candidates' differences, as for ``negative``; by default |x| < 2^62 for each.
    Rounds and bytes: ``maximum_cost``. The smallest is -maximum(-x). Raises ValueError for k = 0.
    """
    values, _ = _tournament(parties, payload, group, bits, operation, values=True, winner=False)
    return values


def winner(
    parties: Parties, payload: Tensor, *, group: int | None = None, bits: int = WORD_BITS, operation: str = "max"
) -> SecretBits:
    """Which of k secrets is the largest, as bits of shape (k, n): one 1 in each column, at the first of equals."""
    return packed(_tournament(parties, payload, group, bits, operation, values=False, winner=True)[1])


def maximum_and_winner(
    parties: Parties, payload: Tensor, *, group: int | None = None, bits: int = WORD_BITS, operation: str = "max"
) -> tuple[Tensor, SecretBits]:
    """``maximum`` and ``winner`` in the same rounds."""
    values, hot = _tournament(parties, payload, group, bits, operation, values=True, winner=True)
    return values, packed(hot)


def position(parties: Parties, hot: SecretBits, operation: str = "max") -> Tensor:
    """Where the 1 of each column of ``hot`` (k, n) is: a payload (S, n) of integers 0 to k - 1.

    Bit b of the position is the XOR of all rows whose number has bit b, so it needs no gate. 2 rounds, 8 B a party for
    each of the ceil(log2 k) bits.
    """
    flags = unpacked(hot)
    k, n = hot.shape
    width = max(k - 1, 0).bit_length()
    if width == 0:
        return torch.zeros((len(flags), n), dtype=torch.int64, device=parties.device)
    rows = torch.arange(k)
    digits = torch.stack([flags[:, (rows >> b) & 1 == 1].sum(1, dtype=torch.uint8) & 1 for b in range(width)], 1)
    ones = comparison.to_arithmetic(parties, packed(digits), operation)
    return (ones << torch.arange(width, device=parties.device)[:, None]).sum(1)


def maximum_cost(
    k: int, n: int, group: int | None = None, bits: int = WORD_BITS, *, values: bool = True, winner: bool = False
) -> tuple[int, int]:
    """(rounds, bytes in all) of the functions above."""
    return _cost(k, n, best_group(k, n, bits) if group is None else group, bits, values, winner)


@lru_cache(maxsize=1024)
def best_group(k: int, n: int, bits: int = WORD_BITS) -> int:
    """The group size that is cheapest when a round counts as BYTES_A_ROUND. Depends on public sizes alone."""

    def price(group: int) -> float:
        rounds, sent = _cost(k, n, group, bits, True, False)
        return rounds * BYTES_A_ROUND + sent / 3

    return min(range(2, min(max(k, 2), 64) + 1), key=price)


def _tournament(
    parties: Parties, payload: Tensor, group: int | None, bits: int, operation: str, *, values: bool, winner: bool
) -> tuple[Tensor, Tensor]:
    """The largest values (S, n), meaningless unless ``values``; and if ``winner`` its flags (S, k, n)."""
    k, n = payload.shape[1:]
    if k == 0:
        raise ValueError("the largest of no secrets: there must be one at least")
    group = best_group(k, n, bits) if group is None else group
    if group < 2:
        raise ValueError(f"a group has 2 candidates or more, found {group}")
    hot = inverted(parties, torch.zeros((len(payload), k if winner else 0, n), dtype=torch.uint8))
    leaves = [[i] for i in range(k)]
    while payload.shape[1] > 1:
        groups = _groups(payload.shape[1], group)
        won = _winners(parties, payload, groups, bits, operation)
        last = len(groups) == 1
        steps: list[Callable[[], Tensor]] = []
        if values or not last:
            steps.append(partial(_promote, parties, payload, won, groups, operation))
        if winner:
            steps.append(partial(_follow, parties, hot, won, groups, leaves, operation))
        results = parties.together(*steps)
        if winner:
            hot = results[-1]
        payload = results[0] if values or not last else payload[:, :1]
        leaves = [[leaf for i in members for leaf in leaves[i]] for members in groups]
    return payload[:, 0], hot


def _groups(candidates: int, size: int) -> list[range]:
    """Candidates in as few groups of at most ``size`` as can be, all but equally large, the larger ones first."""
    count = -(-candidates // size)
    small, larger = divmod(candidates, count)
    edges = [i * small + min(i, larger) for i in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def _winners(parties: Parties, values: Tensor, groups: list[range], bits: int, operation: str) -> Tensor:
    """Flags (S, k, n): which candidates of (S, k, n) win their groups."""
    pairs = [(i, j) for members in groups for i in members for j in members if i < j]
    left, right = [i for i, _ in pairs], [j for _, j in pairs]
    less = unpacked(comparison.negative(parties, values[:, left] - values[:, right], bits, operation))
    facts = torch.cat([less, inverted(parties, less)], 1)
    # What must hold for each candidate but the last of its group: rows of facts.
    conditions: dict[int, list[int]] = {i: [] for members in groups for i in members[:-1]}
    for place, (i, j) in enumerate(pairs):
        conditions[i].append(len(pairs) + place)
        if j in conditions:
            conditions[j].append(place)
    facts = _all_of(parties, facts, conditions, operation)
    won = torch.empty((len(values), *values.shape[1:]), dtype=torch.uint8)
    others = list(conditions)
    won[:, others] = facts[:, [conditions[i][0] for i in others]]
    mine = [place for place, members in enumerate(groups) for _ in members[:-1]]
    won[:, [members[-1] for members in groups]] = inverted(parties, _parity(won[:, others], mine, len(groups)))
    return won


def _parity(flags: Tensor, owners: Sequence[int], count: int) -> Tensor:
    """The XOR of the flags (S, rows, n) of each of ``count`` owners: (S, count, n). No communication."""
    sums = flags.new_zeros((len(flags), count, flags.shape[2]))
    return sums.index_add_(1, torch.tensor(owners, dtype=torch.int64), flags) & 1


def _all_of(parties: Parties, facts: Tensor, conditions: dict[int, list[int]], operation: str) -> Tensor:
    """AND the rows that each list names, in a tree; each list then names one row of the result."""
    while any(len(rows) > 1 for rows in conditions.values()):
        left: list[int] = []
        right: list[int] = []
        for rows in conditions.values():
            half = len(rows) // 2
            fresh = range(facts.shape[1] + len(left), facts.shape[1] + len(left) + half)
            left += rows[:half]
            right += rows[half : 2 * half]
            rows[:] = [*fresh, *rows[2 * half :]]
        facts = torch.cat([facts, both(parties, facts[:, left], facts[:, right], operation)], 1)
    return facts


def _promote(parties: Parties, values: Tensor, won: Tensor, groups: list[range], operation: str) -> Tensor:
    """The winners' values (S, groups, n): x_last + sum_i won_i (x_i - x_last)."""
    last = values[:, [members[-1] for members in groups]]
    others = [i for members in groups for i in members[:-1]]
    rivals = [members[-1] for members in groups for _ in members[:-1]]
    runs = [len(members) - 1 for members in groups if len(members) > 1]
    chosen = comparison.select(parties, packed(won[:, others]), values[:, others] - values[:, rivals], operation, runs)
    # Groups of one come last.
    result = last.clone()
    result[:, : len(runs)] += chosen
    return result


def _follow(
    parties: Parties, hot: Tensor, won: Tensor, groups: list[range], leaves: list[list[int]], operation: str
) -> Tensor:
    """Flags of first candidates that are still in: those of a loser go out, in 1 round or none.

    The flags of a candidate's leaves add up to 1, and afterwards to whether it won: the last one needs no gate.
    """
    playing = [i for members in groups if len(members) > 1 for i in members]
    gated = [(leaf, i) for i in playing for leaf in leaves[i][:-1]]
    result = hot.clone()
    if gated:
        rows, by = [leaf for leaf, _ in gated], [i for _, i in gated]
        result[:, rows] = both(parties, hot[:, rows], won[:, by], operation)
    owners = {i: place for place, i in enumerate(playing)}
    rest = _parity(result[:, [leaf for leaf, _ in gated]], [owners[i] for _, i in gated], len(playing))
    result[:, [leaves[i][-1] for i in playing]] = won[:, playing] ^ rest
    return result


def _cost(k: int, n: int, group: int, bits: int, values: bool, winner: bool) -> tuple[int, int]:
    rounds = sent = 0
    leaves: Sequence[int] = [1] * k
    while len(leaves) > 1:
        groups = _groups(len(leaves), group)
        sizes = [len(members) for members in groups if len(members) > 1]
        compare, select, gate = COSTS["negative"], COSTS["select"], COSTS["and_bits"]
        rounds += compare.rounds(bits)
        sent += compare.sent(n * sum(size * (size - 1) // 2 for size in sizes), bits)
        for gates in _tree(sizes):
            rounds += 1
            sent += gate.sent(n * gates, 0)
        followed = sum(leaves[i] - 1 for members in groups if len(members) > 1 for i in members) if winner else 0
        sent += gate.sent(n * followed, 0)
        if values or len(groups) > 1:
            rounds += select.rounds(0)
            sent += _selection(n * sum(size - 1 for size in sizes), n * len(sizes))
        elif followed:
            rounds += gate.rounds(0)
        leaves = [sum(leaves[i] for i in members) for members in groups]
    return rounds, sent


def _tree(sizes: Iterable[int]) -> list[int]:
    """The gates of each level of ``_all_of``: every candidate but the last of its group has size - 1 conditions."""
    open_conditions = [size - 1 for size in sizes for _ in range(size - 1)]
    levels = []
    while any(count > 1 for count in open_conditions):
        levels.append(sum(count // 2 for count in open_conditions))
        open_conditions = [count - count // 2 for count in open_conditions]
    return levels


def _selection(terms: int, sums: int) -> int:
    """Bytes of a selection of ``terms`` elements whose products are added up to ``sums`` before resharing."""
    full = COSTS["select"].sent(1, 0)
    return full // 2 * (terms + sums)
