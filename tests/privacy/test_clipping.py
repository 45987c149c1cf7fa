"""Clipping on shares never exceeds its bound, and vectors that wrap around the ring are turned away."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from encml.errors import InvalidTensor, PrivacyError
from encml.mpc.parties import Parties
from encml.net.local import LocalTransport
from encml.privacy import wraparound
from encml.privacy.clipping import (
    FACTOR_BITS,
    MAX_FACTOR_BITS,
    MIN_BOUND,
    clipping_factors,
    squared_norms,
    weighted_sum,
)
from encml.privacy.wraparound import DIRECTIONS, NORM_LIMIT, PROJECTION_LIMIT, SQUARE_BITS, accepted, directions

BOUNDS = (MIN_BOUND, 2**20, 12_345_678, NORM_LIMIT)


def parties() -> Parties:
    return Parties(LocalTransport(), seed=5)


def shared(values: Tensor, seed: int = 3) -> Tensor:
    """A payload with uniform shares."""
    generator = torch.Generator().manual_seed(seed)
    high, low = torch.randint(0, 2**32, (2, 2, *values.shape), generator=generator)
    first, second = (high << 32) | low
    return torch.stack([first, second, values - first - second])


def factors_of(squares: list[int], bound: int, seed: int = 3) -> list[int]:
    found: list[int] = clipping_factors(parties(), shared(torch.tensor(squares), seed), bound).sum(0).tolist()
    return found


def adversarial(bound: int) -> list[int]:
    """Squared norms at and next to every place where the computation changes its course."""
    edges = [0, bound**2, 2 * bound**2, 3 * bound**2, 4 * bound**2, *(2**k for k in range(SQUARE_BITS + 1))]
    near = [edge + off for edge in edges for off in range(-2, 3)]
    spread = [int(2 ** (SQUARE_BITS * i / 3000)) for i in range(3000)]
    return [q for q in (*near, *spread) if 0 <= q < 2**SQUARE_BITS]


# The factor --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bound", BOUNDS)
def test_no_factor_lets_a_norm_exceed_the_bound(bound: int, seed: int) -> None:
    """c ||x|| <= C in exact integers; and c is within 3e-4 and four units of the real number it stands for."""
    squares = adversarial(bound)
    for square, factor in zip(squares, factors_of(squares, bound, seed), strict=True):
        assert 0 <= factor <= 2**FACTOR_BITS
        assert factor**2 * square <= bound**2 << 2 * FACTOR_BITS
        exact = min(1.0, bound / math.sqrt(square)) if square else 1.0
        assert factor >= (exact * (1 - 3e-4)) * 2**FACTOR_BITS - 4
        if square < bound**2:
            assert factor == 2**FACTOR_BITS


@settings(deadline=None, max_examples=60)
@given(
    st.integers(MIN_BOUND, NORM_LIMIT),
    st.lists(st.integers(0, 2**SQUARE_BITS - 1) | st.integers(0, 2**30), min_size=1, max_size=40),
)
@example(MIN_BOUND, [MIN_BOUND**2, MIN_BOUND**2 - 1, 2**61 - 1])
def test_the_bound_holds_for_any_bound_and_norm(bound: int, squares: list[int]) -> None:
    near = [min(2**SQUARE_BITS - 1, bound**2 + off) for off in (-1, 0, 1)]
    squares = squares + near
    for square, factor in zip(squares, factors_of(squares, bound), strict=True):
        assert 0 <= factor**2 * square <= bound**2 << 2 * FACTOR_BITS


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_the_bound_holds_at_any_number_of_bits(data: st.DataObject) -> None:
    """Narrower ranges and other factors, as DP-SGD has them; also where the factor would be less than its margin."""
    top, bits = data.draw(st.integers(40, SQUARE_BITS)), data.draw(st.integers(12, MAX_FACTOR_BITS))
    least = max(1, math.ceil(2.0 ** ((top + 1) // 2 + 1 - bits)))
    bound = data.draw(st.integers(least, math.isqrt(2 ** (top - 1) - 1)))
    squares = data.draw(st.lists(st.integers(0, 2**top - 1), min_size=1, max_size=20))
    squares += [0, bound**2 - 1, bound**2, 2**top - 1]
    payload = shared(torch.tensor(squares))
    found = clipping_factors(parties(), payload, bound, factor_bits=bits, top=top).sum(0).tolist()
    for square, factor in zip(squares, found, strict=True):
        assert factor**2 * square <= bound**2 << 2 * bits
        exact = min(1.0, bound / math.sqrt(square)) if square else 1.0
        assert (exact * (1 - 3e-4)) * 2**bits - 4 <= factor <= 2**bits


@pytest.mark.parametrize("bound", [-1, 0, MIN_BOUND - 1, 2**30, 2**31])
def test_bounds_that_cannot_be_computed_with_are_refused(bound: int) -> None:
    with pytest.raises(PrivacyError, match=f"clipping norm of {bound} ring units"):
        factors_of([1], bound)


def test_factor_costs_what_it_says() -> None:
    session = parties()
    n, bound = 640, 2**20
    with session.ledger.measure() as spent:
        clipping_factors(session, shared(torch.full((n,), 2**45)), bound)
    assert spent[0].rounds == 19
    assert spent[0].bytes / n == pytest.approx(184 * (61 - 40) + 120, rel=0.01)


# Norms and sums ----------------------------------------------------------------------------------------------------


def test_squared_norms_and_weighted_sums_are_exact() -> None:
    session = parties()
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randint(-(2**25), 2**25, (4, 300), generator=generator)
    factors = torch.tensor([2**20, 1, 0, 777_777])
    with session.ledger.measure() as spent:
        squares = squared_norms(session, shared(vectors))
    assert squares.sum(0).tolist() == [sum(v * v for v in row) for row in vectors.tolist()]
    assert (spent[0].rounds, spent[0].bytes) == (1, 3 * 8 * 4)
    with session.ledger.measure() as spent:
        rows = weighted_sum(session, shared(factors), shared(vectors, seed=9))
    assert torch.equal(rows.sum(0), (factors[:, None] * vectors).sum(0))
    assert spent[0].bytes == 0


def test_clipping_agrees_with_float64() -> None:
    """Clients shorter, as long as, and longer than C: the clipped sum is the real one, within 3e-4 of C."""
    session = parties()
    generator = torch.Generator().manual_seed(2)
    norms = torch.tensor([0.0, 0.01, 0.999, 1.0, 1.001, 3.0, 50.0], dtype=torch.float64)
    vectors = torch.randn(len(norms), 5000, generator=generator, dtype=torch.float64)
    vectors *= (norms / vectors.norm(dim=1))[:, None]
    integers = (vectors * 2**20).round().long()
    factors = clipping_factors(session, squared_norms(session, shared(integers)), 2**20)
    clipped = (factors.sum(0)[:, None] * integers).double() / 2.0**40
    expected = vectors / norms.clamp(min=1.0)[:, None]
    assert (clipped - expected).norm(dim=1).max() < 3e-4
    assert clipped.norm(dim=1).max() <= 1.0


# Wrap-around -------------------------------------------------------------------------------------------------------


def verdicts(vectors: Tensor, seed: int = 3) -> list[bool]:
    found: list[bool] = accepted(parties(), shared(vectors, seed)).tolist()
    return found


def scaled(vector: Tensor, norm: float) -> Tensor:
    return (vector.double() * (norm / vector.double().norm())).round().long()


@pytest.mark.parametrize("dimension", [1, 2, 64, 3000])
def test_honest_vectors_of_the_largest_norm_pass(dimension: int) -> None:
    generator = torch.Generator().manual_seed(dimension)
    shapes = [torch.randn(dimension, generator=generator), torch.ones(dimension), torch.eye(dimension)[0]]
    vectors = torch.stack(
        [scaled(v, NORM_LIMIT - math.sqrt(dimension)) for v in shapes] + [torch.zeros(dimension).long()]
    )
    for seed in range(5):
        assert verdicts(vectors, seed) == [True] * 4


def test_vectors_that_vanish_in_the_ring_are_turned_away() -> None:
    """Each of these has a squared norm that is small, or zero, modulo 2^64."""
    d = 500
    big = [
        torch.full((d,), 2**32),
        torch.full((d,), -(2**63)),
        torch.tensor([2**32] + [0] * (d - 1)),
        torch.tensor([0] * (d - 1) + [-(2**63)]),
        torch.tensor([2**63 - 1] + [0] * (d - 1)),
        torch.tensor([2**62, 2**62] + [0] * (d - 2)),
        torch.full((d,), 2**40) * torch.randint(-1, 2, (d,), generator=torch.Generator().manual_seed(1)),
    ]
    squares = squared_norms(parties(), shared(torch.stack(big))).sum(0)
    assert (squares.abs() <= 1).all(), "without the check these would pass for short vectors"
    assert verdicts(torch.stack(big)) == [False] * len(big)


def test_the_check_turns_away_norms_beyond_24_times_the_limit_and_no_smaller_bound_is_claimed() -> None:
    generator = torch.Generator().manual_seed(4)
    v = torch.randn(2000, generator=generator)
    factors = [0.99, 25.0, 100.0, 10_000.0]
    assert verdicts(torch.stack([scaled(v, f * NORM_LIMIT) for f in factors])) == [True, False, False, False]
    assert (24 * NORM_LIMIT) ** 2 <= 2**SQUARE_BITS
    assert PROJECTION_LIMIT * 4 == 24 * NORM_LIMIT


@pytest.mark.parametrize("value", [PROJECTION_LIMIT, -PROJECTION_LIMIT, 0, 1, -1])
@pytest.mark.parametrize("row", [0, 31, 63, 64, DIRECTIONS - 1])
def test_one_projection_at_the_limit_passes_and_beyond_it_does_not(
    monkeypatch: pytest.MonkeyPatch, value: int, row: int
) -> None:
    """Also where the comparison itself wraps around: at +-2^63."""
    lone = torch.zeros((1, DIRECTIONS), dtype=torch.int64)
    lone[0, row] = 1
    monkeypatch.setattr(wraparound, "directions", lambda key, dimension: lone)
    step = -1 if value < 0 else 1
    beyond = [
        step * (PROJECTION_LIMIT + 1),
        2**63 - 1,
        -(2**63),
        2**63 - 1 - PROJECTION_LIMIT,
        -(2**63) + PROJECTION_LIMIT,
    ]
    assert verdicts(torch.tensor([[value], *([b] for b in beyond)])) == [True] + [False] * len(beyond)


def test_directions_have_the_distribution_that_the_proof_needs() -> None:
    drawn = directions(bytes(range(16)), 4000)
    assert drawn.shape == (4000, DIRECTIONS)
    for value, share in ((-1, 0.25), (0, 0.5), (1, 0.25)):
        assert (drawn == value).double().mean() == pytest.approx(share, abs=0.004)
    correlations = drawn.double().T @ drawn.double() / 4000 - torch.eye(DIRECTIONS, dtype=torch.float64) / 2
    assert correlations.abs().max() < 0.05
    assert not torch.equal(drawn, directions(bytes(16), 4000))
    assert torch.equal(drawn, directions(bytes(range(16)), 4000))


def test_directions_are_new_each_time() -> None:
    """Nobody, not even with the parties' mask keys known, can predict them."""
    seen: list[bytes] = []
    for _ in range(2):
        session = Parties(LocalTransport(), seed=5)
        seen.append(wraparound._public_key(session))
    assert seen[0] != seen[1]
    assert len(seen[0]) == 16


def test_norm_check_costs_what_it_says() -> None:
    session = parties()
    for n in (1, 10):
        with session.ledger.measure() as spent:
            accepted(session, shared(torch.zeros((n, 50), dtype=torch.int64)))
        assert spent[0].rounds == 18
        assert spent[0].bytes / n == pytest.approx(13_300, rel=0.02)


def test_too_many_entries_for_the_proof_are_refused() -> None:
    with pytest.raises(InvalidTensor, match="proven up to"):
        accepted(parties(), torch.zeros((3, 1, 1), dtype=torch.int64).expand(3, 1, wraparound.MAX_DIMENSION + 1))
