"""The discrete Gaussian sampler: its distribution, its exactness, its refusals. Every test runs on a fixed key."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from encml.errors import PrivacyError
from encml.privacy import discrete
from encml.privacy.discrete import MAX_VARIANCE, MIN_VARIANCE, RandomSource, discrete_gaussian

# A correct sampler gives a smaller p-value once in 10^4 keys; these keys are fixed.
ALPHA = 1e-4


def source(name: str = "") -> RandomSource:
    return RandomSource(hashlib.sha256(name.encode()).digest()[:16])


def pmf(sigma: float, support: np.ndarray) -> np.ndarray:
    """The exact probabilities, normalised over so wide a range that nothing is lost in float64."""
    wide = np.arange(-math.ceil(40 * sigma) - 40, math.ceil(40 * sigma) + 41)
    return np.exp(-(support.astype(float) ** 2) / (2 * sigma**2)) / np.exp(-(wide**2) / (2 * sigma**2)).sum()


def chi_square(samples: np.ndarray, sigma: float) -> float:
    """p-value of the goodness of fit to N_Z(0, σ²); cells are single integers, and the two tails beyond."""
    reach = 0
    while samples.size * pmf(sigma, np.array([reach + 1]))[0] >= 10:
        reach += 1
    cells = pmf(sigma, np.arange(-reach, reach + 1))
    tail = (1 - cells.sum()) / 2
    expected = np.concatenate([[tail], cells, [tail]]) * samples.size
    clipped = np.clip(samples, -reach - 1, reach + 1) + reach + 1
    observed = np.bincount(clipped, minlength=2 * reach + 3)
    full = expected >= 1  # a tail that expects less than one sample is left out
    return float(stats.chisquare(observed[full], expected[full] * observed[full].sum() / expected[full].sum()).pvalue)


@pytest.mark.parametrize("sigma", [Fraction(1, 2), Fraction(1), Fraction(7, 5), Fraction(3), Fraction(10)])
def test_small_sigma_follows_the_exact_probabilities(sigma: Fraction) -> None:
    samples = discrete_gaussian(sigma**2, 200_000, source(f"chi {sigma}"))
    assert samples.dtype == np.int64
    assert samples.shape == (200_000,)
    assert chi_square(samples, float(sigma)) > ALPHA


def test_the_goodness_of_fit_test_tells_a_rounded_gaussian_from_a_discrete_one() -> None:
    rounded = np.rint(np.random.default_rng(0).normal(scale=1.0, size=200_000)).astype(np.int64)
    assert chi_square(rounded, 1.0) < 1e-6


def test_the_goodness_of_fit_test_tells_a_wrong_zero() -> None:
    samples = discrete_gaussian(9, 200_000, source("zeros"))
    extra = np.concatenate([samples, samples[samples == 0][:1500]])
    assert chi_square(extra, 3.0) < 1e-3


def test_a_tiny_variance_gives_zeros() -> None:
    assert not discrete_gaussian(MIN_VARIANCE, 1000, source()).any()


@pytest.mark.parametrize("exponent", [20, 44, 50])
def test_large_sigma_looks_normal(exponent: int) -> None:
    size = 200_000
    samples = discrete_gaussian(Fraction(4**exponent), size, source(f"normal {exponent}"))
    scaled = samples / 2.0**exponent
    assert stats.kstest(scaled, "norm").pvalue > ALPHA
    # The sum of squares is chi-square with `size` degrees of freedom.
    assert ALPHA < stats.chi2.cdf((scaled**2).sum(), size) < 1 - ALPHA
    for reach in (2.0, 3.0, 4.0):
        beyond = int((np.abs(scaled) > reach).sum())
        assert stats.binomtest(beyond, size, 2 * stats.norm.sf(reach)).pvalue > ALPHA


@pytest.mark.parametrize("exponent", [20, 44, 50])
def test_the_low_bits_of_large_samples_are_uniform(exponent: int) -> None:
    # What Mironov's attack reads: float64 samples would leave gaps here.
    samples = discrete_gaussian(Fraction(4**exponent), 100_000, source(f"low {exponent}"))
    assert stats.chisquare(np.bincount(samples & 0xFF, minlength=256)).pvalue > ALPHA


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(9), Fraction(4**44)])
def test_symmetric(variance: Fraction) -> None:
    samples = discrete_gaussian(variance, 200_000, source(f"sym {variance}"))
    positive, negative = int((samples > 0).sum()), int((samples < 0).sum())
    assert stats.binomtest(positive, positive + negative).pvalue > ALPHA
    assert stats.ks_2samp(samples[samples > 0], -samples[samples < 0]).pvalue > ALPHA


def test_samples_do_not_depend_on_their_place_in_the_array() -> None:
    # Chunks and the cut at `size` must not favour values that are decided early.
    words = source("place")
    samples = np.stack([discrete_gaussian(9, 5, words) for _ in range(3000)])
    for column in samples.T:
        assert chi_square(column, 3.0) > ALPHA
    assert abs(np.corrcoef(np.abs(samples.T))[np.triu_indices(5, 1)]).max() < 0.08


@pytest.mark.parametrize("gamma", [Fraction(0), Fraction(1, 7), Fraction(1, 2), Fraction(5, 6), Fraction(1)])
def test_coins_of_probability_exp_minus_gamma(gamma: Fraction) -> None:
    size = 200_000
    kept = discrete._survivors(np.arange(size), np.full(size, float(gamma)), lambda j: gamma, source(f"coins {gamma}"))
    if gamma == 0:
        assert kept.size == size
    else:
        assert stats.binomtest(kept.size, size, math.exp(-gamma)).pvalue > ALPHA
    assert (np.diff(kept) > 0).all()


def test_geometric_and_laplace_follow_their_exact_probabilities() -> None:
    runs = discrete._geometric(100_000, source("geometric"))
    observed = np.bincount(np.minimum(runs, 7), minlength=8)
    cells = np.exp(-np.arange(8.0)) * np.array([1 - math.exp(-1)] * 7 + [1.0])
    assert stats.chisquare(observed, cells * runs.size).pvalue > ALPHA

    scale = 3
    laplace = discrete._discrete_laplace(scale, 200_000, source("laplace"))
    reach = 20
    values = np.arange(-reach, reach + 1)
    q = math.exp(-1 / scale)
    cells = (1 - q) / (1 + q) * q ** np.abs(values)
    cells[0] = cells[-1] = cells[0] / (1 - q)
    observed = np.bincount(np.clip(laplace, -reach, reach) + reach, minlength=2 * reach + 1)
    assert stats.chisquare(observed, cells * laplace.size).pvalue > ALPHA


@pytest.mark.parametrize(
    "variance", [MIN_VARIANCE, Fraction(1, 4), Fraction(22, 7), Fraction(10**6, 3), Fraction(4**44), MAX_VARIANCE]
)
def test_rational_arithmetic_decides_the_same(variance: Fraction, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = discrete_gaussian(variance, 600, source("same bits"))
    monkeypatch.setattr(discrete, "_MARGIN", 2.0)  # every coin is now too close to call
    by_rationals = Mock(wraps=discrete._below)
    monkeypatch.setattr(discrete, "_below", by_rationals)
    exact = discrete_gaussian(variance, 600, source("same bits"))
    assert by_rationals.call_count > 600
    np.testing.assert_array_equal(fast, exact)


def test_a_wrong_float_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The comparison above has the power to fail: an error well beyond the margin changes samples.
    exact = discrete_gaussian(9, 20_000, source("power"))
    good = discrete._exponents
    monkeypatch.setattr(discrete, "_exponents", lambda *args: (good(*args)[0] * 1.001, good(*args)[1]))
    assert (discrete_gaussian(9, 20_000, source("power")) != exact).any()


class Script(RandomSource):
    """Words from a list, to steer into the cases that chance never shows."""

    def __init__(self, *words: int) -> None:
        super().__init__(bytes(16))
        self.left = list(words)

    def words(self, count: int) -> np.ndarray:
        taken, self.left = self.left[:count], self.left[count:]
        assert len(taken) == count, "more words were drawn than expected"
        return np.array(taken, dtype=np.uint64)


THIRD = 0x5555555555555555  # the first 64 bits of 1/3, and every 64 bits after them


@pytest.mark.parametrize(
    ("further", "expected"),
    [([THIRD - 1], True), ([THIRD + 1], False), ([THIRD, THIRD, 0], True), ([THIRD, THIRD, 2**64 - 1], False)],
)
def test_equal_bits_are_extended_until_they_differ(further: list[int], expected: bool) -> None:
    script = Script(*further)
    assert discrete._below(THIRD, Fraction(1, 3), script) is expected
    assert not script.left


def test_a_threshold_of_64_bits_needs_no_further_words() -> None:
    assert discrete._below(2**63 - 1, Fraction(1, 2), Script()) is True
    assert discrete._below(2**63, Fraction(1, 2), Script()) is False
    assert discrete._below(0, Fraction(0), Script()) is False
    assert discrete._below(2**64 - 1, Fraction(1), Script()) is True


def test_words_that_would_favour_small_remainders_are_thrown_away() -> None:
    # 2^64 = 1 modulo 3: the largest word alone would make remainder 0 more likely than the others.
    assert discrete._discrete_laplace(3, 1, Script(2**64 - 1)).shape == (0,)
    # The next one counts, as remainder 2. Its coin stops at k = 1 (success), the coin of e^-1 at k = 2; sign +.
    script = Script(2**64 - 2, 2**64 - 1, 0, 2**64 - 1, 0)
    assert discrete._discrete_laplace(3, 1, script).tolist() == [2]
    assert not script.left


def test_a_coin_on_the_threshold_is_decided_exactly() -> None:
    # γ = 1/3 and r = 0.0101…: float64 cannot tell; the second 64 bits decide. A success at k = 1 goes on to k = 2.
    gamma = np.array([1 / 3])
    for second, then, survives in ((THIRD + 1, [], True), (THIRD - 1, [2**63], False)):
        script = Script(THIRD, second, *then)
        kept = discrete._survivors(np.arange(1), gamma, lambda j: Fraction(1, 3), script)
        assert (kept.size == 1) is survives
        assert not script.left


@given(
    root=st.fractions(min_value=Fraction(1, 32), max_value=2**50),
    ratio=st.fractions(min_value=0, max_value=4096),
)
def test_exponents_are_within_their_proven_bound(root: Fraction, ratio: Fraction) -> None:
    variance = min(root**2, MAX_VARIANCE)
    scale = math.isqrt(math.floor(variance)) + 1
    magnitude = round(ratio * scale)
    gamma, throws = discrete._exponents(np.array([magnitude]), variance, scale)
    exact = discrete._exact_exponent(magnitude, variance, scale)
    assert abs(Fraction(float(gamma[0])) - exact) <= 10 * (exact + 1) / 2**53
    assert int(throws[0]) >= max(1, exact)
    assert abs(Fraction(float(gamma[0] / throws[0])) - exact / int(throws[0])) < Fraction(1, 2**47)


def test_the_same_key_gives_the_same_samples_and_another_key_others() -> None:
    first = discrete_gaussian(Fraction(4**44), 1000, source("a"))
    np.testing.assert_array_equal(first, discrete_gaussian(Fraction(4**44), 1000, source("a")))
    assert (first != discrete_gaussian(Fraction(4**44), 1000, source("b"))).any()


def test_keyed_words_are_the_aes_ctr_keystream() -> None:
    # AES-128 under the zero key of the counters 0 and 1, as in test case 1 of the GCM specification.
    zero = RandomSource(bytes(16))
    assert zero.words(2).tobytes().hex() == "66e94bd4ef8a2c3b884cfa59ca342b2e"
    assert zero.words(2).tobytes().hex() == "58e2fccefa7e3061367f1d57a4e7455a"


def test_operating_system_words_never_repeat() -> None:
    free = RandomSource()
    words = np.concatenate([free.words(512) for _ in range(4)] + [RandomSource().words(512)])
    assert np.unique(words).size == words.size
    assert free.words(0).shape == (0,)


def test_repr_hides_the_key() -> None:
    assert repr(source("secret")) == "RandomSource(keyed)"
    assert repr(RandomSource()) == "RandomSource(operating system)"


def test_sizes() -> None:
    assert discrete_gaussian(4, 0, source()).shape == (0,)
    assert discrete_gaussian(4, 1, source()).shape == (1,)
    assert discrete_gaussian(4, 100_001, source()).shape == (100_001,)


@pytest.mark.parametrize("variance", [0, -1, MAX_VARIANCE + 1, MIN_VARIANCE / 2, 2.0, "4"])
def test_refuses_variances_it_cannot_sample(variance: object) -> None:
    with pytest.raises(PrivacyError, match="2\\^-10 to 2\\^100"):
        discrete_gaussian(variance, 1, source())  # type: ignore[arg-type]


def test_refuses_a_negative_size_and_a_short_key() -> None:
    with pytest.raises(PrivacyError, match="size -1"):
        discrete_gaussian(4, -1, source())
    with pytest.raises(PrivacyError, match="15 bytes"):
        RandomSource(bytes(15))
