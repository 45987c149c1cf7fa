"""The protocols under Adam: products with public factors, clipping, moments, and the direction, in ring units."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ring import in_process, opened
from torch import Tensor

from encml.mpc.parties import Parties
from encml.mpc.sharing import public
from encml.optim import moments
from encml.optim.moments import GRADIENT_BITS, SQUARE_BITS


def spread(count: int, low: float, high: float, seed: int = 0) -> Tensor:
    """Integers of either sign whose sizes are spread evenly over powers of two from 2^low to 2^high."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 2 ** (low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64))
    return (sizes * torch.randn(count, generator=generator).sign()).round().long()


def shared(parties: Parties, values: Tensor) -> Tensor:
    """Values as random shares."""
    return public(parties, values) + parties.zero(values.shape)


@settings(deadline=None, max_examples=60)
@given(
    number=st.floats(1e-9, 2.0**10) | st.floats(-(2.0**10), -1e-9) | st.sampled_from([0.0, 1.0, 0.5, 3.0, 2.0**-40]),
    more=st.integers(-6, 8),
    size=st.integers(1, 34),
)
def test_times_a_public_number(number: float, more: int, size: int) -> None:
    """Within a unit, 2^-15 of the result, and what is left of a factor below 2^-33."""
    parties, x = in_process(), spread(40, 0, size, seed=size)
    found = opened(moments.times(parties, shared(parties, x), number, more))
    exact = x.double() * math.ldexp(number, more)
    allowed = 1 + exact.abs() * 2.0**-15 + x.abs().double() * 2.0 ** (-48)
    assert bool(((found.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize(("number", "rounds"), [(1.0, 0), (3.0, 0), (0.0, 0), (0.5, 2), (0.1, 2), (1e-3, 2)])
def test_times_costs_a_truncation_or_nothing(number: float, rounds: int) -> None:
    parties = in_process()
    before = parties.ledger.rounds
    moments.times(parties, shared(parties, spread(10, 0, 20)), number)
    assert parties.ledger.rounds - before == rounds


def test_clipping() -> None:
    parties = in_process()
    edge = (1 << 31) - (1 << 16)
    x = torch.cat(
        [spread(200, 0, 60), torch.tensor([0, edge, edge + 1, edge - 1, -edge, -edge - 1, 2**61 - 1, -(2**61) + 1])]
    )
    with parties.ledger.measure() as spent:
        found = moments.clipped(parties, shared(parties, x))
    assert torch.equal(opened(found), x.clamp(-edge, edge))
    assert spent[0].rounds == 10
    assert spent[0].bytes_per_party / len(x) < 75


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999, 0.99999])
def test_moments_are_corrected_averages(beta: float) -> None:
    """Against float64: 40 steps of gradients of all sizes. Rounding: a unit each step for M, early ones up to 16 for
    V, which later steps average away; the weights have 15 bits (12 at first for V), whose errors the average forgets
    as it does the values."""
    parties = in_process()
    steps = [spread(300, 4, 30.9, seed=seed) for seed in range(40)]
    m = v = torch.zeros(3, 300, dtype=torch.int64)
    mean = square = torch.zeros(300, dtype=torch.float64)
    high = torch.zeros(300, dtype=torch.float64)
    for t, g in enumerate(steps, 1):
        weight = (1 - beta) / (1 - beta**t)
        gradient = shared(parties, g)
        m = moments.first_moment(parties, m, gradient, weight)
        v = moments.second_moment(parties, v, gradient, weight)
        mean = mean + weight * (g.double() - mean)
        square = square + weight * (g.double() ** 2 / 2**8 - square)
        high = torch.maximum(high, g.double().abs())
    assert bool(((opened(m).double() - mean).abs() <= 8 + high * 2.0**-13).all())
    error = (opened(v).double() - square).abs()
    assert bool((error <= 40 + high**2 / 2**8 * 2.0**-11).all())


@pytest.mark.parametrize("weight", [1.0, 0.5, 1 / 3, 0.1, 0.01, 1e-3, 1e-5])
def test_squares_do_not_sink_below_zero(weight: float) -> None:
    """Gradients of nothing on averages of next to nothing, with all roundings against us: no lower than -8."""
    parties = in_process()
    v = shared(parties, torch.arange(200).repeat(40))
    nothing = torch.zeros_like(v)
    for _ in range(6):
        v = moments.second_moment(parties, v, nothing, weight)
        assert int(opened(v).min()) >= (0 if weight in (1.0, 1e-3, 1e-5) else -8)


def test_the_largest_of_two() -> None:
    parties = in_process()
    x, y = spread(100, 0, 54), spread(100, 0, 54, seed=1)
    assert torch.equal(opened(moments.largest(parties, shared(parties, x), shared(parties, y))), torch.maximum(x, y))


def test_the_direction() -> None:
    """Over all sizes of gradients that the range holds, and down to averages that rounding made negative."""
    parties, n = in_process(), 3000
    g = spread(n, 3, 30.9).abs()
    v = (g.double() ** 2 / 2**8).long()
    m = (g.double() * (4 * torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 2)).long()
    m = m.clamp(-(2**31), 2**31)
    found = opened(moments.direction(parties, shared(parties, m), shared(parties, v), 0.0)).double() / 2**20
    exact = m.double() / 2**GRADIENT_BITS / torch.sqrt((v + 16).double() / 2**SQUARE_BITS)
    assert bool(((found - exact).abs() <= 2.0**-12 * exact.abs() + 2.0**-18).all())
    low = torch.tensor([-8, -1, 0, 1, 15])
    found = opened(moments.direction(parties, shared(parties, torch.full((5,), 64)), shared(parties, low), 0.0))
    exact = 64 / 2**4 / torch.sqrt((low + 16).double())
    assert torch.allclose(found.double() / 2**20, exact, rtol=2.0**-12)


@pytest.mark.parametrize("eps", [1e-8, 1e-5, 1e-2, 1.0])
def test_eps_joins_under_the_root(eps: float) -> None:
    parties = in_process()
    g = spread(200, 8, 30.9).abs()
    v = (g.double() ** 2 / 2**8).long()
    found = opened(moments.direction(parties, shared(parties, g), shared(parties, v), eps)).double() / 2**20
    added = max(eps**2, 16 * 2.0**-SQUARE_BITS)
    exact = g.double() / 2**GRADIENT_BITS / torch.sqrt(v.double() / 2**SQUARE_BITS + added)
    assert bool(((found - exact).abs() <= 2.0**-12 * exact.abs() + 2.0**-18).all())
