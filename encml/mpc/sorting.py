"""Sorting by shuffling first: once nobody knows which element is where, the order itself may be opened.

1. *Shuffle.* In three passes each pair of parties permutes the shares with a permutation that the third does not know:
   x as two terms, x_i + x_{i+1} of party i and x_{i+2} of party i + 1, both permuted and reshared. No party knows all
   three permutations. (Laur, Willemson and Zhang 2011.)
2. *Compare and open.* Keys are made distinct by their first position in the low bits, so the ranks of the shuffled
   elements are a uniformly random permutation, whatever the values: opening comparisons between them reveals nothing.
   The parties sort in public with as few comparisons as they like. (Hamada et al. 2012.)

Here they partition by several pivots at a time, all segments of all columns in one batch a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from encml.mpc.comparison import WORD_BITS, negative
from encml.mpc.costs import COSTS
from encml.mpc.flags import open_bits
from encml.mpc.ordering import BYTES_A_ROUND
from encml.mpc.parties import Parties, known
from encml.mpc.sharing import public
from encml.net.transport import PARTIES
from encml.ring.devices import beside


@dataclass(frozen=True, slots=True, repr=False)
class Arrangement:
    """A secret rearrangement of k rows, for n columns side by side, down to the ``wanted`` rows.

    ``passes`` are permutations (k, n), number i known to parties i and i + 1 and None elsewhere; ``order`` (rows, n) is
    public and says which of the shuffled rows stand in the wanted places.
    """

    parties: Parties
    passes: tuple[Tensor | None, ...]
    order: Tensor
    rows: int

    def apply(self, payload: Tensor, operation: str = "sort") -> Tensor:
        """(S, k, n) to (S, rows, n). 3 rounds, 16 B a party and element."""
        return self.pick(_shuffle(self.parties, payload, self.passes, operation))

    def pick(self, shuffled: Tensor) -> Tensor:
        """The wanted rows (S, rows, n) of a payload (S, k, n) that is shuffled already. No communication."""
        return shuffled.gather(1, beside(shuffled, self.order).expand(len(shuffled), *self.order.shape))

    def undo(self, payload: Tensor, operation: str = "sort") -> Tensor:
        """(S, rows, n) back to (S, k, n), 0 where nothing was wanted. 3 rounds, 16 B a party and element of k."""
        shuffled = payload.new_zeros((len(payload), self.rows, payload.shape[2]))
        shuffled.scatter_(1, beside(payload, self.order).expand(len(payload), *self.order.shape), payload)
        back = tuple(None if p is None else p.argsort(0) for p in reversed(self.passes))
        return _shuffle(self.parties, shuffled, back, operation, first=2, step=-1)


def arrange(
    parties: Parties,
    payload: Tensor,
    wanted: range | None = None,
    *,
    pivots: int | None = None,
    operation: str = "sort",
) -> tuple[Arrangement, Tensor, Tensor]:
    """Order each column of (S, k, n) from the smallest up, equals as they came; at least the ``wanted`` ranks.

    Returns the arrangement, the sorted values (S, rows, n) and the positions that they came from (S, rows, n).
    Bound: |x| 2^s < 2^62 with s = ceil(log2 k). pivots: how many elements every other one of its segment meets in one
    batch; default by k and n; segments of up to three times as many meet all at once, in 12 rounds if that is all.
    Bytes: 32 B a party and element for the shuffle, 22.75 B for a comparison, k (k - 1) / 2 or about 1.4 k log2 k of
    them. How many it takes is random, but does not depend on the values.
    """
    k, n = payload.shape[1:]
    wanted = range(k) if wanted is None else wanted
    passes = tuple(_permutation(parties, i, (k, n)) for i in range(PARTIES))
    places = public(parties, torch.arange(k)[:, None].expand(k, n).contiguous())
    values, places = _shuffle(parties, torch.stack([payload, places], 1), passes, operation).unbind(1)
    keys = (values << _tie_bits(k)) + places
    order = _public_order(parties, keys, wanted, pivots or best_pivots(k, n), operation)
    result = Arrangement(parties, passes, order[wanted.start : wanted.stop], k)
    return result, result.pick(values), result.pick(places)


def all_pairs_cost(k: int, n: int) -> tuple[int, int]:
    """(rounds, bytes in all) of ``arrange`` when all pairs meet at once."""
    if k < 2:
        return PARTIES, PARTIES * COSTS["reshare_pair"].sent(2 * k * n, 0)
    pairs = n * k * (k - 1) // 2
    sent = PARTIES * COSTS["reshare_pair"].sent(2 * k * n, 0)
    sent += COSTS["negative"].sent(pairs, WORD_BITS) + COSTS["and_bits"].sent(pairs, 0)
    return PARTIES + COSTS["negative"].rounds(WORD_BITS) + 1, sent


@lru_cache(maxsize=1024)
def best_pivots(k: int, n: int) -> int:
    """The number of pivots that is cheapest when a round counts as BYTES_A_ROUND. Depends on public sizes alone."""
    if k <= 2:
        return 1
    a_comparison, a_level = COSTS["negative"].bytes_per_party(), COSTS["negative"].rounds(WORD_BITS) + 1

    def price(pivots: int) -> float:
        if pivots >= k - 1:
            return a_comparison * n * k * (k - 1) / 2 + a_level * BYTES_A_ROUND
        # Fitted to what 10 to 1000 elements took; most are in order some levels before the last.
        levels = 1 + 2.2 * math.log(max(k / (3 * pivots), 1)) / math.log(pivots + 1)
        return levels * (0.6 * a_comparison * n * k * pivots + a_level * BYTES_A_ROUND)

    return min(sorted({1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, k - 1}), key=price)


def _permutation(parties: Parties, stream: int, shape: tuple[int, int]) -> Tensor | None:
    """A uniformly random permutation of every column, common to parties ``stream`` and ``stream + 1``."""
    words = parties.common(stream, shape)
    return None if words is None else words.argsort(stable=True, dim=0)


def _shuffle(
    parties: Parties,
    payload: Tensor,
    passes: Sequence[Tensor | None],
    operation: str,
    first: int = 0,
    step: int = 1,
) -> Tensor:
    """Row ``passes[i][j]`` of every column to place j of a payload (S, ..., k, n), one pass after the other.

    1 round a pass, and 16 B an element in all.
    """
    shape = tuple(payload.shape[1:])
    for number, permutation in enumerate(passes):
        pair = (first + step * number) % PARTIES
        left = right = None
        if parties.plays(pair):
            whole = known(parties.share(payload, pair)) + known(parties.share(payload, pair + 1))
            left = _permuted(whole, known(permutation))
        if parties.plays(pair + 1):
            right = _permuted(known(parties.share(payload, pair + 2)), known(permutation))
        payload = parties.reshare_pair(pair, left, right, shape, operation)
    return payload


def _permuted(share: Tensor, permutation: Tensor) -> Tensor:
    return share.gather(-2, beside(share, permutation).expand(share.shape))


def _tie_bits(k: int) -> int:
    return max(k - 1, 0).bit_length()


def _public_order(parties: Parties, keys: Tensor, wanted: range, pivots: int, operation: str) -> Tensor:
    """(k, n): which row of ``keys`` (S, k, n), all different, has each rank; right at the wanted ranks.

    Each level takes the first ``pivots`` elements of every segment that is not in order yet and has a wanted rank, or
    all of a segment of up to three times as many; whoever is in the segment meets them, and what comes out cuts it.
    """
    k, n = keys.shape[1:]
    flat = keys.reshape(len(keys), k * n)
    rank = torch.arange(k)[:, None].expand(k, n)
    order, start = rank.clone(), torch.zeros((k, n), dtype=torch.int64)
    end = torch.full((k, n), k)
    while True:
        todo = (end - start > 1) & (start < wanted.stop) & (end > wanted.start)
        if not todo.any():
            return order
        # Element number e of a segment meets its pivots 0 to e - 1, those that stand before it.
        size = end - start
        chosen = torch.where(size <= 3 * pivots, size, pivots)
        meetings = torch.where(todo, torch.minimum(rank - start, chosen), 0).reshape(-1)
        place = torch.arange(k * n).repeat_interleave(meetings)
        before = torch.arange(len(place)) - (meetings.cumsum(0) - meetings).repeat_interleave(meetings)
        column = place % n
        pivot_place = (start.reshape(-1)[place] + before) * n + column
        rows = order.reshape(-1)
        left, right = rows[pivot_place] * n + column, rows[place] * n + column
        less = open_bits(parties, negative(parties, flat[:, left] - flat[:, right], operation=operation), operation)
        is_pivot = todo & (rank - start < chosen)
        smaller = torch.zeros(k * n, dtype=torch.int64)
        smaller.index_add_(0, place, less.long())
        smaller.index_add_(0, pivot_place, (~less & is_pivot.reshape(-1)[place]).long())
        # Within a segment, pivot number c from below goes to class 2 c + 1, what lies below it to 2 c.
        section = torch.where(todo, 2 * smaller.view(k, n) + is_pivot, 0)
        sort_by = start * (6 * pivots + 2) + section
        moved = sort_by.argsort(stable=True, dim=0)
        order, sort_by = order.gather(0, moved), sort_by.gather(0, moved)
        fresh = torch.ones((k, n), dtype=torch.bool)
        fresh[1:] = sort_by[1:] != sort_by[:-1]
        start = torch.where(fresh, rank, 0).cummax(0).values
        last = torch.ones((k, n), dtype=torch.bool)
        last[:-1] = fresh[1:]
        end = torch.where(last, rank + 1, k).flip(0).cummin(0).values.flip(0)
