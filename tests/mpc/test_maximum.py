"""The largest of secrets and which it is, against plain integers; costs from the ledger."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from party_threads import run_apart
from plain_ring import in_process, opened, opened_bits, random_ring, split, split_bits
from torch import Tensor

from encml.mpc import comparison, ordering
from encml.mpc.comparison import SecretBits
from encml.mpc.flags import both, inverted, open_bits, packed, unpacked
from encml.mpc.parties import Parties

SIZES = [(1, 3), (2, 1), (3, 5), (4, 64), (5, 65), (7, 2), (10, 3), (16, 1), (17, 7)]
WHOLE = 2**62


def hot_of(bits: SecretBits) -> Tensor:
    return torch.tensor(opened_bits(bits.plane, bits.shape)).view(bits.shape)


def first_largest(x: Tensor) -> Tensor:
    """One-hot over rows, at the first of equals."""
    rows = [[int(i == column.index(max(column))) for i in range(len(column))] for column in x.t().tolist()]
    return torch.tensor(rows).view(x.shape[1], x.shape[0]).t()


@pytest.mark.parametrize(("k", "n"), SIZES)
@pytest.mark.parametrize("group", [2, 3, 4, 100, None])
def test_maximum_and_winner(k: int, n: int, group: int | None) -> None:
    parties = in_process()
    x = random_ring((k, n), 5) >> 2
    values, hot = ordering.maximum_and_winner(parties, split(parties, x), group=group)
    assert torch.equal(opened(values), x.max(0).values)
    assert torch.equal(hot_of(hot), first_largest(x))
    assert torch.equal(opened(ordering.maximum(parties, split(parties, x), group=group)), x.max(0).values)
    assert torch.equal(hot_of(ordering.winner(parties, split(parties, x), group=group)), first_largest(x))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 9).flatmap(lambda k: st.lists(st.lists(st.integers(-2, 1), min_size=k, max_size=k), min_size=1)),
    st.integers(2, 9),
)
def test_the_first_of_equals_wins(columns: list[list[int]], group: int) -> None:
    parties, x = in_process(), torch.tensor(columns).t().contiguous()
    values, hot = ordering.maximum_and_winner(parties, split(parties, x), group=group)
    assert torch.equal(opened(values), x.max(0).values)
    assert torch.equal(hot_of(hot), first_largest(x))
    assert torch.equal(opened(ordering.position(parties, hot)), first_largest(x).argmax(0))


def test_at_the_edges_of_the_range() -> None:
    edges = torch.tensor([1 - WHOLE, WHOLE - 1, 0, -1, 1])
    x = torch.cartesian_prod(edges, edges, edges).t().contiguous()
    for group in (2, 3):
        parties = in_process(3)
        assert torch.equal(opened(ordering.maximum(parties, split(parties, x), group=group)), x.max(0).values)


def test_a_declared_range_of_the_differences() -> None:
    parties, x = in_process(), (random_ring((6, 70), 1) >> 32).clamp(-(2**30), 2**30 - 1)
    with parties.ledger.measure() as spent:
        values = ordering.maximum(parties, split(parties, x), bits=32, group=2)
    assert torch.equal(opened(values), x.max(0).values)
    assert (spent[0].rounds, spent[0].bytes) == ordering.maximum_cost(6, 70, 2, 32)


def test_views_and_no_columns() -> None:
    parties, x = in_process(), random_ring((7, 5), 1) >> 2
    values, hot = ordering.maximum_and_winner(parties, split(parties, x).transpose(1, 2))
    assert torch.equal(opened(values), x.max(1).values)
    assert torch.equal(hot_of(hot), first_largest(x.t()))
    assert ordering.maximum(parties, split(parties, x[:, :0])).shape == (3, 0)
    with pytest.raises(ValueError, match="no secrets"):
        ordering.maximum(parties, split(parties, x[:0]))
    with pytest.raises(ValueError, match="2 candidates"):
        ordering.maximum(parties, split(parties, x), group=1)


@pytest.mark.parametrize(("k", "n"), SIZES)
@pytest.mark.parametrize("group", [2, 3, 5, 100, None])
def test_ledger_equals_declaration(k: int, n: int, group: int | None) -> None:
    for values, winner, run in [
        (True, False, ordering.maximum),
        (False, True, ordering.winner),
        (True, True, ordering.maximum_and_winner),
    ]:
        parties = in_process()
        x = split(parties, random_ring((k, n), 5) >> 2)
        with parties.ledger.measure() as spent:
            run(parties, x, group=group)  # type: ignore[operator]
        declared = ordering.maximum_cost(k, n, group, values=values, winner=winner)
        assert (spent[0].rounds, spent[0].bytes) == declared


@pytest.mark.parametrize(
    ("k", "group", "rounds", "most_bytes"), [(2, 2, 10, 33.5), (4, 2, 20, 101), (4, 4, 12, 160), (10, 10, 14, 1100)]
)
def test_what_it_costs(k: int, group: int, rounds: int, most_bytes: float) -> None:
    spent_rounds, sent = ordering.maximum_cost(k, 6400, group)
    assert spent_rounds == rounds
    assert sent / 3 / 6400 < most_bytes


def test_which_one_it_is_costs_no_rounds_and_few_bits() -> None:
    plain, with_winner = (ordering.maximum_cost(9, 640, 2, winner=flag) for flag in (False, True))
    assert plain[0] == with_winner[0]
    assert with_winner[1] - plain[1] < 5 * 9 * 640


def test_small_batches_save_rounds_and_large_ones_bytes() -> None:
    assert ordering.best_group(10, 1) == 10
    assert ordering.best_group(4, 10**6) == 2


def test_positions() -> None:
    for k in (1, 2, 3, 8, 9):
        parties, where = in_process(), torch.arange(40) % k
        hot = SecretBits(split_bits(parties, where == torch.arange(k)[:, None]), (k, 40))
        with parties.ledger.measure() as spent:
            found = ordering.position(parties, hot)
        assert torch.equal(opened(found), where)
        width = (k - 1).bit_length()
        assert (spent[0].rounds, spent[0].bytes) == ((2, 24 * 40 * width) if k > 1 else (0, 0))


def test_runs_of_a_selection_are_added_up() -> None:
    parties, x = in_process(), random_ring((6, 11), 1)
    flags = random_ring((6, 11), 2) & 1
    bits = SecretBits(split_bits(parties, flags), (6, 11))
    with parties.ledger.measure() as spent:
        found = comparison.select(parties, bits, split(parties, x), runs=[3, 1, 2])
    chosen = x * flags
    assert torch.equal(opened(found), torch.stack([chosen[:3].sum(0), chosen[3], chosen[4:].sum(0)]))
    assert (spent[0].rounds, spent[0].bytes) == (2, 16 * (66 + 33))


# Flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (1,), (63,), (64,), (65,), (3, 43)])
def test_flags_there_and_back(shape: tuple[int, ...]) -> None:
    parties, x, y = in_process(), random_ring(shape, 1) & 1, random_ring(shape, 2) & 1
    a, b = (SecretBits(split_bits(parties, flags, i), shape) for i, flags in enumerate((x, y)))
    flags = unpacked(a)
    assert flags.shape == (3, *shape)
    assert flags.dtype == torch.uint8
    assert torch.equal(flags[0] ^ flags[1] ^ flags[2], x.to(torch.uint8))
    assert opened_bits(packed(flags).plane, shape) == x.reshape(-1).tolist()
    assert torch.equal(open_bits(parties, packed(inverted(parties, flags))), x == 0)
    assert torch.equal(open_bits(parties, packed(both(parties, flags, unpacked(b), "test"))), (x & y).bool())


def test_parties_apart_agree() -> None:
    x = random_ring((5, 70), 9) >> 2

    def script(parties: Parties) -> list[Tensor]:
        values, hot = ordering.maximum_and_winner(parties, split(parties, x), group=3)
        where = ordering.position(parties, hot)
        return [values, where, hot.plane, open_bits(parties, hot)]

    together = script(in_process(4))
    apart, _ = run_apart(script, 4)
    for rank, results in enumerate(apart):
        for mine, all_three in zip(results[:3], together[:3], strict=True):
            assert torch.equal(mine[0], all_three[rank])
            assert torch.equal(mine[1], all_three[(rank + 1) % 3])
        assert torch.equal(results[3].long(), first_largest(x))
