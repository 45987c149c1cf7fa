"""Softmax and log-softmax against float64, over the range of inputs; what they cost; three parties apart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from party_threads import run_apart
from plain_ring import in_process, opened, split
from torch import Tensor

from encml.mpc.functions.softmax import log_softmax, log_softmax_and_slope, lowest, softmax, total_bits
from encml.mpc.parties import Parties
from encml.net.ledger import Cost

F = 16
BITS = pytest.mark.parametrize("f", [4, 10, 16, 20])


def scores(k: int, n: int, scale: float, f: int = F, seed: int = 0) -> Tensor:
    """Normal numbers times ``scale`` on the grid of 2^-f, (k, n)."""
    x = torch.randn(k, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return (x * 2**f).round() / 2**f


def check(x: Tensor, f: int = F, hidden: Tensor | None = None) -> None:
    """Within 2 units of the last place or 2^-12 of the result, whichever is larger, for both functions."""
    parties = in_process()
    payload = split(parties, (x * 2**f).long())
    known = x if hidden is None else x.masked_fill(hidden, -math.inf)
    found = opened(softmax(parties, payload, f, hidden)).double() / 2**f
    expected = known.softmax(0).nan_to_num(0.0)
    assert worst(found, expected, f) <= 1
    if hidden is not None:
        assert (found[hidden] == 0).all()
    logs, weights = log_softmax(parties, payload, f, hidden)
    found, expected = opened(logs).double() / 2**f, known.log_softmax(0)
    shown = torch.ones_like(x, dtype=torch.bool) if hidden is None else ~hidden
    assert worst(found[shown], expected[shown], f) <= 1
    assert worst(opened(weights.probabilities(parties)).double() / 2**f, known.softmax(0).nan_to_num(0.0), f) <= 1


def worst(found: Tensor, expected: Tensor, f: int) -> float:
    """The largest error, as a fraction of what is allowed."""
    allowed = (expected.abs() * 2**-12).clamp(min=2 * 2.0**-f)
    return float(((found - expected).abs() / allowed).max()) if found.numel() else 0.0


@BITS
@pytest.mark.parametrize(("k", "n"), [(1, 3), (2, 200), (3, 1), (10, 300), (13, 70), (150, 6)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0, 30.0])
def test_values(f: int, k: int, n: int, scale: float) -> None:
    check(scores(k, n, scale, f), f)


@BITS
def test_at_the_edges_of_the_range(f: int) -> None:
    edge = 2.0 ** (62 - 2 * f) - 2.0 ** max(-f, 10 - 2 * f)  # as near as float64 comes
    columns = [[edge, -edge, -edge], [-edge, -edge, edge], [edge, edge, 0.0], [0.0, edge, edge], [-edge] * 3]
    check(torch.tensor(columns, dtype=torch.float64).t().contiguous(), f)


@pytest.mark.parametrize("k", [10, 100, 2000])
def test_one_above_many_that_are_alike(k: int) -> None:
    """Where what is left out, and what is rounded alike in all entries, would add up."""
    distances = torch.tensor([0.0, 0.5, 1, 3, 7, 9.7, 11, 12, 12.5, 13, 13.5, 14, 14.5, 15, 15.5, 16, 18, 30, 1000])
    x = (7.25 - distances).double().expand(k, -1).clone()
    x[k // 2] = 7.25
    check(x)


def test_every_fraction_of_the_table() -> None:
    """Differences across several entries of the table, in steps of 3 / 2048."""
    u = torch.arange(0, 3000, dtype=torch.float64) * 3 / 2048
    check(torch.stack([torch.full_like(u, 5.0), 5.0 - u]))


@pytest.mark.parametrize("k", [2, 10])
def test_every_size_of_the_sum(k: int) -> None:
    """Entries alike but for one, so that the sum runs over the thresholds."""
    u = torch.arange(0, 1500, dtype=torch.float64) / 256
    x = torch.zeros(k, len(u), dtype=torch.float64)
    x[1:] = -u
    check(x)


def test_hidden_entries() -> None:
    x = scores(12, 40, 2.0)
    hidden = torch.rand(12, 40, generator=torch.Generator().manual_seed(1)) > 0.5
    hidden[:, 2] = True
    hidden[:, 3] = False
    hidden[1:, 4], hidden[0, 4] = True, False
    x[5, 5], hidden[5, 5] = 2.0**29, True  # the largest of its column
    check(x, hidden=hidden)
    check(x, hidden=torch.zeros_like(hidden))
    check(x, hidden=torch.ones_like(hidden))


def test_entries_at_minus_infinity_weigh_nothing() -> None:
    x = scores(4, 3, 2.0)
    x[1:] = lowest(F) / 2**F
    check(x)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(-(2**22), 2**22), min_size=2, max_size=9), st.integers(-(2**40), 2**40))
def test_a_common_shift_changes_nothing(values: list[int], shift: int) -> None:
    x = torch.tensor(values, dtype=torch.float64)[:, None] / 2**F
    check(x)
    parties = in_process()
    found = opened(softmax(parties, split(parties, (x * 2**F).long() + shift), F)).double() / 2**F
    assert worst(found, x.softmax(0), F) <= 1


@pytest.mark.parametrize("shape", [(3, 0), (1, 0)])
def test_no_columns(shape: tuple[int, int]) -> None:
    parties = in_process()
    assert softmax(parties, split(parties, torch.zeros(shape, dtype=torch.int64)), F).shape[1:] == shape


ONE_OF_MANY = 2605.67
"""Bytes a party sends for one of many softmaxes over 10 entries."""
ONE_OF_MANY_LOGS = 2522.25


def cost(k: int, n: int, logarithm: bool = False, hidden: Tensor | None = None) -> Cost:
    parties = in_process()
    payload = split(parties, torch.zeros(k, n, dtype=torch.int64))
    with parties.ledger.measure() as spent:
        if logarithm:
            log_softmax(parties, payload, F, hidden)
        else:
            softmax(parties, payload, F, hidden)
    return spent[0]


def test_cost() -> None:
    """Of one softmax over 10 entries, where bits travel in words of 64, and of each of many."""
    one, many = cost(10, 1), cost(10, 640)
    assert one.rounds == many.rounds == 50
    assert one.bytes_per_party <= 4700
    assert many.bytes_per_party / 640 == pytest.approx(ONE_OF_MANY, abs=0.01)
    assert cost(10, 640, logarithm=True).rounds == 47
    assert cost(10, 640, logarithm=True).bytes_per_party / 640 == pytest.approx(ONE_OF_MANY_LOGS, abs=0.01)


@pytest.mark.parametrize("fraction_bits", [4, 8, 16, 20, 24])
def test_slopes_in_the_same_rounds(fraction_bits: int) -> None:
    """p, and t p for totals up to their bound: within 2 units and 2^-13 of p, and what a large total magnifies."""
    parties, unit = in_process(), 2.0**-fraction_bits
    x = torch.randn(10, 200, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 4
    t = torch.linspace(0, 2.0 ** total_bits(fraction_bits) - 1, 200, dtype=torch.float64)
    x, t = ((v / unit).round() * unit for v in (x, t))
    shared, totals = (split(parties, (v / unit).long()) for v in (x, t))
    with parties.ledger.measure() as spent:
        logs, weights, slope = log_softmax_and_slope(parties, shared, fraction_bits)
    again, _ = log_softmax(parties, shared, fraction_bits)
    rounds = parties.ledger.rounds - spent[0].rounds
    assert spent[0].rounds <= rounds
    _, _, times = log_softmax_and_slope(parties, shared, fraction_bits, totals)
    p = x.softmax(0)
    for found, exact, allowed in (
        (slope, p, torch.zeros(())),
        (weights.probabilities(parties), p, torch.zeros(())),
        (times, t * p, t * 2.0**-19),
        (logs, x.log_softmax(0), torch.tensor(2.0**-18)),
        (again, x.log_softmax(0), torch.tensor(2.0**-18)),
    ):
        error = (found.sum(0).double() * unit - exact).abs()
        assert bool((error <= 2 * unit + 2.0**-13 * exact.abs() + allowed).all())


def test_hidden_entries_cost_no_exponential() -> None:
    causal = torch.ones(64, 64, dtype=torch.bool).tril().logical_not()
    full, half = cost(64, 64), cost(64, 64, hidden=causal)
    assert half.rounds == full.rounds
    assert full.bytes_per_party - half.bytes_per_party > 64 * 63 / 2 * 160


def test_three_parties_apart() -> None:
    x, hidden = (scores(11, 9, 3.0) * 2**F).long(), torch.ones(11, 9, dtype=torch.bool).tril().logical_not()

    def script(parties: Parties) -> list[Tensor]:
        payload = split(parties, x)
        logs, weights = log_softmax(parties, payload, F, hidden)
        return [softmax(parties, payload, F), logs, weights.probabilities(parties)]

    whole = script(in_process(seed=5))
    apart, _ = run_apart(script, seed=5)
    for rank, results in enumerate(apart):
        for part, full in zip(results, whole, strict=True):
            assert torch.equal(part[0], full[rank])
            assert torch.equal(part[1], full[(rank + 1) % 3])
