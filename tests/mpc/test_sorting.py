"""Sorting by shuffling: order, stability, arrangements that are carried over; costs; and what is opened."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from party_threads import run_apart
from party_views import GROUPS, Case, Frozen, Inputs, N, leaks
from plain_ring import in_process, opened, random_ring, split
from torch import Tensor

from encml.mpc import sorting
from encml.mpc.flags import open_bits
from encml.mpc.parties import Parties

SIZES = [(1, 3), (2, 5), (3, 1), (8, 65), (17, 4), (40, 3)]


@pytest.mark.parametrize(("k", "n"), SIZES)
@pytest.mark.parametrize("pivots", [1, 2, 5, 100, None])
def test_sorts_and_says_where_from(k: int, n: int, pivots: int | None) -> None:
    x = random_ring((k, n), 3) >> 8
    _, values, places = sorting.arrange(in_process(), split(in_process(), x), pivots=pivots)
    expected = x.sort(stable=True, dim=0)
    assert torch.equal(opened(values), expected.values)
    assert torch.equal(opened(places), expected.indices)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 9).flatmap(lambda k: st.lists(st.lists(st.integers(-2, 2), min_size=k, max_size=k), min_size=1)),
    st.integers(1, 9),
    st.integers(0, 2**32),
)
def test_equals_stay_as_they_came(columns: list[list[int]], pivots: int, seed: int) -> None:
    x = torch.tensor(columns).t().contiguous()
    _, values, places = sorting.arrange(in_process(seed), split(in_process(), x), pivots=pivots)
    expected = x.sort(stable=True, dim=0)
    assert torch.equal(opened(values), expected.values)
    assert torch.equal(opened(places), expected.indices)


@pytest.mark.parametrize("wanted", [range(0, 1), range(3, 4), range(5, 9), range(0, 9), range(8, 9), range(4, 4)])
@pytest.mark.parametrize("pivots", [1, 2, 20])
def test_wanted_ranks(wanted: range, pivots: int) -> None:
    x = random_ring((9, 7), 4) >> 8
    arrangement, values, places = sorting.arrange(in_process(), split(in_process(), x), wanted, pivots=pivots)
    expected = x.sort(0)
    rows = slice(wanted.start, wanted.stop)
    assert torch.equal(opened(values), expected.values[rows])
    assert torch.equal(opened(places), expected.indices[rows])
    y = random_ring((9, 7), 5)
    carried = arrangement.apply(split(in_process(), y))
    assert torch.equal(opened(carried), y.gather(0, expected.indices)[rows])
    back = opened(arrangement.undo(carried))
    assert torch.equal(back, torch.zeros_like(y).scatter(0, expected.indices[rows], opened(carried)))


def test_costs() -> None:
    for k, n in SIZES:
        parties = in_process()
        x = split(parties, random_ring((k, n), 1) >> 8)
        with parties.ledger.measure() as spent:
            arrangement, *_ = sorting.arrange(parties, x, pivots=k)
        assert (spent[0].rounds, spent[0].bytes) == sorting.all_pairs_cost(k, n)
        for move in (arrangement.apply, arrangement.undo):
            with parties.ledger.measure() as spent:
                move(x)
            assert (spent[0].rounds, spent[0].bytes) == (3, 48 * k * n)


def test_many_elements_take_few_rounds_and_comparisons() -> None:
    parties = in_process()
    k = 1000
    x = split(parties, random_ring((k, 1), 1) >> 12)
    with parties.ledger.measure() as spent:
        _, values, _ = sorting.arrange(parties, x)
    assert torch.equal(opened(values), opened(x).sort(0).values)
    assert spent[0].rounds <= 75
    assert spent[0].bytes_per_party < 23 * 40 * k
    with parties.ledger.measure() as one:
        sorting.arrange(parties, x, range(k // 2, k // 2 + 1))
    assert one[0].bytes_per_party < 0.7 * spent[0].bytes_per_party


def test_few_elements_meet_at_once() -> None:
    assert 3 * sorting.best_pivots(10, 1) >= 10
    assert sorting.best_pivots(1000, 1000) < 9


def test_what_is_opened_is_a_uniform_permutation_whatever_the_values() -> None:
    """All that is opened are comparisons, a function of the public order: 24 orders, chi-square at 3e-6 (64)."""
    n = 24_000
    for values in ([1, 2, 3, 4], [4, 3, 2, 1], [7, 7, 7, 7], [5, 1, 5, 1]):
        x = torch.tensor(values)[:, None].expand(4, n).contiguous()
        arrangement, *_ = sorting.arrange(in_process(sum(values)), split(in_process(), x), pivots=4)
        counts = Counter(map(tuple, arrangement.order.t().tolist()))
        assert len(counts) == 24
        assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 64


def test_no_party_knows_where_rows_go() -> None:
    """Each knows two of the passes; the third moves every row anywhere."""
    parties = in_process()
    arrangement, *_ = sorting.arrange(parties, split(parties, torch.zeros(4, 24_000, dtype=torch.int64)))
    for permutation in arrangement.passes:
        assert permutation is not None
        counts = Counter(map(tuple, permutation.t().tolist()))
        assert len(counts) == 24
        assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 64


def both_rows(inputs: Inputs) -> Tensor:
    return torch.stack([inputs.payload(0), inputs.payload(1)], 1)


ROWS = ((1, 2), (2, 1), (5, 5), (2**40, -(2**40)))


def test_no_message_of_a_sort_depends_on_the_values() -> None:
    assert list(leaks(Case(lambda p, i: sorting.arrange(p, both_rows(i), pivots=2), ROWS), pairs=False)) == []


def opened_to(party: int, secret: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What comparisons between two rows open, (N,), where what ``party`` knows is constant in GROUPS of columns."""
    seen: list[Tensor] = []

    def spy(*args: Any) -> Tensor:
        seen.append(open_bits(*args))
        return seen[-1]

    monkeypatch.setattr(sorting, "open_bits", spy)
    parties = in_process(50 + party)
    for stream in (party, party - 1):
        parties._streams[stream % 3] = Frozen(stream % 3)  # type: ignore[assignment]
    sorting.arrange(parties, both_rows(Inputs(parties, party, secret)), pivots=2)
    return torch.cat(seen)


@pytest.mark.parametrize("party", [0, 1, 2])
@pytest.mark.parametrize("secret", ROWS)
def test_what_is_opened_is_a_coin_to_every_party(
    party: int, secret: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven sigma in each group; without the shuffles it would be the answer."""
    heads = opened_to(party, secret, monkeypatch).view(GROUPS, -1).sum(1)
    assert bool(((heads - N // GROUPS / 2).abs() < 7 * (N // GROUPS) ** 0.5 / 2).all())
    monkeypatch.setattr(sorting, "_permutation", lambda parties, stream, shape: torch.arange(2)[:, None].expand(shape))
    assert opened_to(party, secret, monkeypatch).unique().numel() == 1


def test_carrying_and_undoing_say_nothing() -> None:
    def run(parties: Parties, inputs: Inputs) -> None:
        passes = tuple(sorting._permutation(parties, i, (2, N)) for i in range(3))
        order = torch.tensor([[1], [0]]).expand(2, N)
        arrangement = sorting.Arrangement(parties, passes, order, 2)
        arrangement.undo(arrangement.apply(both_rows(inputs)))

    assert list(leaks(Case(run, ROWS), pairs=False)) == []


def test_parties_apart_agree() -> None:
    x = random_ring((12, 3), 9) >> 8

    def script(parties: Parties) -> list[Tensor]:
        arrangement, values, places = sorting.arrange(parties, split(parties, x), pivots=2)
        return [values, places, arrangement.undo(arrangement.apply(split(parties, x)))]

    together = script(in_process(4))
    apart, _ = run_apart(script, 4)
    for rank, results in enumerate(apart):
        for mine, all_three in zip(results, together, strict=True):
            assert torch.equal(mine[0], all_three[rank])
            assert torch.equal(mine[1], all_three[(rank + 1) % 3])
    assert torch.equal(opened(together[2]), x)
