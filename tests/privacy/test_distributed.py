"""The claims that carry a Gaussian's accounting over to the sum of two parties' discrete Gaussians, by exact sums."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants.analysis.rdp import compute_rdp
from scipy import stats

from encml.errors import PrivacyError
from encml.privacy.distributed import (
    DELTA_SLACK,
    RENYI_SLACK,
    convolution_gap,
    party_variance,
    renyi_gap,
    total_variation_gap,
)


def log_pmf(variance: float, reach: int, shift: int = 0) -> np.ndarray:
    """Logarithms of the probabilities of N_Z(shift, variance) on −reach … reach."""
    exponents = -((np.arange(-reach, reach + 1.0) - shift) ** 2) / (2 * variance)
    return exponents - np.logaddexp.reduce(exponents)


def mix(log_p: np.ndarray, log_q: np.ndarray, rate: float) -> np.ndarray:
    """Logarithms of (1 − rate)·p + rate·q."""
    return log_q if rate == 1 else np.logaddexp(math.log1p(-rate) + log_p, math.log(rate) + log_q)


def divergence(log_p: np.ndarray, log_q: np.ndarray, order: float) -> float:
    """Rényi divergence D_order(p ‖ q), summed in logarithms so that no tail is lost."""
    return float(np.logaddexp.reduce((order * log_p + (1 - order) * log_q).ravel()) / (order - 1))


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize("sigma", [0.5, 0.7, 1.0])
def test_a_sum_of_discrete_gaussians_is_within_tau_of_one(sigma: float, parties: int) -> None:
    single = np.exp(log_pmf(sigma**2, 60))
    total = single
    for _ in range(parties - 1):
        total = np.convolve(total, single)
    middle = total.size // 2
    near = slice(middle - 8, middle + 9)  # farther out float64 has no digits left for a ratio
    ratio = np.log(total[near]) - log_pmf(parties * sigma**2, middle)[near]
    tau = convolution_gap(Fraction(sigma) ** 2, parties)
    assert np.abs(ratio).max() <= tau / 2
    if parties == 2:
        assert np.abs(ratio).max() >= tau / 6  # a bound of the right size, or the test would show nothing


@pytest.mark.parametrize("rate", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("delta", [(1,), (3,), (1, -2)])
def test_the_sampled_discrete_gaussian_has_exactly_the_continuous_divergence_at_integer_orders(
    delta: tuple[int, ...], rate: float
) -> None:
    variance = 6.0
    reach = 60 if len(delta) == 1 else 40
    without = with_unit = np.zeros(())
    for shift in delta:
        without = np.add.outer(without, log_pmf(variance, reach))
        with_unit = np.add.outer(with_unit, log_pmf(variance, reach, shift))
    mixture = mix(without, with_unit, rate)
    multiplier = math.sqrt(variance / sum(d * d for d in delta))
    for order in (2, 3, 5, 8):
        accounted = compute_rdp(q=rate, noise_multiplier=multiplier, steps=1, orders=[order])[0]
        assert divergence(mixture, without, order) == pytest.approx(accounted, rel=1e-9)
        assert divergence(without, mixture, order) <= accounted * (1 + 1e-9)


@pytest.mark.parametrize("order", [1.1, 1.5, 2.7, 4.3])
@pytest.mark.parametrize(("variance", "delta"), [(1.0, 3), (0.5, 2), (4.0, 1)])
def test_at_other_orders_the_difference_is_within_its_bound(variance: float, delta: int, order: float) -> None:
    rate, multiplier = 0.3, math.sqrt(variance) / delta
    without = log_pmf(variance, 80)
    mixture = mix(without, log_pmf(variance, 80, delta), rate)
    accounted = compute_rdp(q=rate, noise_multiplier=multiplier, steps=1, orders=[order])[0]
    factor = math.exp((order - 1) * (divergence(mixture, without, order) - accounted))
    kappa = math.pi**2 * math.sqrt(variance) * multiplier
    assert factor - 1 <= 2 * math.exp(-kappa) / -math.expm1(-kappa) + 1e-9  # the sum over n ≠ 0, in one dimension
    assert divergence(without, mixture, order) <= divergence(mixture, without, order) + 1e-12


@pytest.mark.parametrize("rate", [0.1, 1.0])
@pytest.mark.parametrize("variance", [Fraction(1, 2), Fraction(7, 10), Fraction(1), Fraction(2)])
def test_two_parties_noise_is_within_the_gap_of_what_is_accounted(variance: Fraction, rate: float) -> None:
    part = np.exp(log_pmf(float(variance), 12))
    without = np.pad(np.convolve(part, part), 1)
    mixture = (1 - rate) * without + rate * np.roll(without, 1)
    near = slice(6, -6)  # what underflows at the ends is left out, on both sides alike
    multiplier = math.sqrt(2 * variance)
    excess = []
    for order in (1.1, 1.7, 2, 3.6):
        accounted = compute_rdp(q=rate, noise_multiplier=multiplier, steps=1, orders=[order])[0]
        actual = divergence(np.log(mixture[near]), np.log(without[near]), order)
        excess.append(actual - accounted)
    gap = renyi_gap(variance, multiplier, 1)
    assert max(excess) <= gap + 1e-9
    assert gap < math.inf


def test_the_gap_is_not_idle() -> None:
    # Where the noise is coarse, divergences do exceed the continuous ones.
    part = np.exp(log_pmf(0.5, 12))
    without = np.pad(np.convolve(part, part), 1)[6:-6]
    actual = max(divergence(np.log(np.roll(without, s)[3:-3]), np.log(without[3:-3]), 3.0) - 1.5 for s in (1, -1))
    assert 1e-3 < actual <= renyi_gap(Fraction(1, 2), 1.0, 1)


def test_the_gap_is_the_sum_of_its_two_parts() -> None:
    fine, coarse = 1e3, 0.06
    assert renyi_gap(Fraction(1), fine, 100) == pytest.approx(100 * 5 * math.exp(-(math.pi**2)) * 12)
    assert renyi_gap(Fraction(50), coarse, 1) == pytest.approx(4 * math.exp(-(math.pi**2) * 10 * coarse) * 10)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_sum_over_frequencies_is_within_its_bound(size: int) -> None:
    kappa = 4 * math.sqrt(size) * math.log(4 * size)
    for k in (kappa, 2 * kappa):
        norms = [math.hypot(*n) for n in itertools.product(range(-5, 6), repeat=size) if any(n)]
        assert sum(math.exp(-k * norm) for norm in norms) <= 4 * size * math.exp(-k)


@pytest.mark.parametrize("variance", [0.5, 2.0, 50.0, 1e4])
def test_a_rounded_gaussian_is_within_its_bound_of_a_discrete_one(variance: float) -> None:
    reach = math.ceil(12 * math.sqrt(variance)) + 2
    edges = (np.arange(-reach, reach + 2) - 0.5) / math.sqrt(variance)
    distance = np.abs(np.diff(stats.norm.cdf(edges)) - np.exp(log_pmf(variance, reach))).sum() / 2
    assert distance <= 1 / (24 * variance)
    assert distance >= 1 / (240 * variance)


@pytest.mark.parametrize("variance", [1, 5, 100])
def test_two_parties_noise_is_within_its_distance_of_a_rounded_gaussian(variance: int) -> None:
    part = np.exp(log_pmf(variance, 12 * variance))
    both = np.convolve(part, part)
    edges = (np.arange(both.size + 1) - both.size / 2) / math.sqrt(2 * variance)
    distance = np.abs(np.diff(stats.norm.cdf(edges)) - both).sum() / 2
    bound = total_variation_gap(Fraction(variance), 1)
    assert bound / 10 <= distance <= bound
    assert total_variation_gap(Fraction(variance), 7) == pytest.approx(7 * bound)


def test_two_parties_parts_make_the_variance() -> None:
    variance = party_variance(1.5, 2**20, size=1000)
    assert variance == Fraction(9, 4) * 2**40 / 2
    assert party_variance(0.1, 1e6, size=10) == (Fraction(0.1) * 10**6) ** 2 / 2  # no rounding of the float 0.1


def test_noise_fine_enough_adds_nothing() -> None:
    variance = party_variance(1.0, 2**44, size=1_000_000, mechanism="prv")
    assert renyi_gap(variance, 1.0, 1_000_000) == 0.0
    assert 0 < total_variation_gap(variance, 1_000_000) < 1e-20


@given(multiplier=st.floats(0.01, 100), bits=st.integers(0, 48), size=st.integers(1, 10**7), prv=st.booleans())
def test_what_is_not_refused_is_within_the_slack(multiplier: float, bits: int, size: int, prv: bool) -> None:
    mechanism = "prv" if prv else "rdp"
    variance = (Fraction(multiplier) * 2**bits) ** 2 / 2
    gap = total_variation_gap(variance, size) if prv else renyi_gap(variance, multiplier, size)
    slack = DELTA_SLACK if prv else RENYI_SLACK
    if gap <= slack:
        assert party_variance(multiplier, 2**bits, size, mechanism) == variance
        finer = total_variation_gap(4 * variance, size) if prv else renyi_gap(4 * variance, multiplier, size)
        assert finer <= gap
    else:
        with pytest.raises(PrivacyError, match="more fraction bits"):
            party_variance(multiplier, 2**bits, size, mechanism)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 2, 1), "too coarse"),
        ((1.0, 2**10, 10**6), "too coarse"),
        ((1.0, 2**20, 10, "prv"), "too coarse for 'prv'"),
        ((0.0, 2**20, 1), "add none"),
        ((-1.0, 2**20, 1), "noise multiplier -1.0"),
        ((math.nan, 2**20, 1), "noise multiplier nan"),
        ((1.0, 0, 1), "sensitivity 0"),
        ((1.0, math.inf, 1), "sensitivity inf"),
        ((1.0, math.nan, 1), "sensitivity nan"),
        ((1.0, 2**20, 0), "0 coordinates"),
        ((1.0, 2**20, 1, "gdp"), "mechanism 'gdp'"),
    ],
)
def test_refusals(arguments: tuple, message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        party_variance(*arguments)
