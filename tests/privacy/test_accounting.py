"""The accountant against Opacus, closed forms and laws; resuming; refusals; the sentence for people."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy import optimize, stats

from encml.errors import PrivacyError
from encml.privacy.accounting import Accountant, PrivacyStatement, noise_multiplier_for

DELTA = 1e-5
MECHANISMS = ("rdp", "prv")
noises = st.floats(0.5, 20)
rates = st.one_of(st.floats(1e-3, 1), st.just(1.0))
counts = st.integers(1, 2000)


def epsilon(noise: float, rate: float, steps: int, mechanism: str = "rdp", delta: float = DELTA) -> float:
    accountant = Accountant(mechanism, delta)  # type: ignore[arg-type]
    accountant.step(noise, rate, steps)
    return accountant.epsilon()


def gaussian_epsilon(noise: float, delta: float) -> float:
    """The exact ε of one Gaussian mechanism (Balle and Wang 2018, Theorem 8); T steps are one at noise/√T."""

    def excess(eps: float) -> float:
        a, b = 1 / (2 * noise), eps * noise
        return stats.norm.cdf(a - b) - math.exp(eps + stats.norm.logcdf(-a - b)) - delta

    return float(optimize.brentq(excess, 0, 1000))


@pytest.mark.parametrize(("mechanism", "opacus"), [("rdp", RDPAccountant), ("prv", PRVAccountant)])
def test_equals_opacus_step_by_step(mechanism: str, opacus: type) -> None:
    accountant, reference = Accountant(mechanism, DELTA), opacus()  # type: ignore[arg-type]
    for noise, rate in [(1.1, 0.05)] * 20 + [(1.4, 0.1)] * 10 + [(1.1, 0.05)] * 5:
        accountant.step(noise, rate)
        reference.step(noise_multiplier=noise, sample_rate=rate)
    assert accountant.steps == 35
    # The order of the steps does not matter; Opacus keeps three runs here, we two.
    assert accountant.epsilon() == pytest.approx(reference.get_epsilon(DELTA), rel=1e-6 if mechanism == "rdp" else 1e-2)


def test_rdp_of_the_full_batch_is_the_closed_form() -> None:
    noise, steps = 4.0, 7
    orders = np.array(RDPAccountant.DEFAULT_ALPHAS)
    divergence = steps * orders / (2 * noise**2)
    expected = (divergence + np.log1p(-1 / orders) - np.log(DELTA * orders) / (orders - 1)).min()
    assert epsilon(noise, 1.0, steps) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 7), (10.0, 30), (1.0, 30)])
def test_the_full_batch_against_the_exact_gaussian(noise: float, steps: int) -> None:
    exact = gaussian_epsilon(noise / math.sqrt(steps), DELTA)
    assert exact <= epsilon(noise, 1.0, steps, "prv") <= exact + 0.03
    assert exact <= epsilon(noise, 1.0, steps, "rdp") <= 1.15 * exact


def test_nothing_spent_and_everything_spent() -> None:
    for mechanism in MECHANISMS:
        accountant = Accountant(mechanism, DELTA)
        assert accountant.epsilon() == 0.0
        accountant.step(1.0, 0.1, steps=0)
        assert accountant.epsilon() == 0.0
        accountant.step(1.0, 0.1)
        assert 0 < accountant.epsilon() < math.inf
        accountant.step(0.0, 0.1)
        assert accountant.epsilon() == math.inf


@given(noise=noises, rate=rates, steps=counts)
@settings(max_examples=15, deadline=None)
def test_rdp_grows_with_steps_and_rate_and_shrinks_with_noise_and_delta(noise: float, rate: float, steps: int) -> None:
    base = epsilon(noise, rate, steps)
    slack = 1e-6 * base + 1e-9
    assert base >= 0
    assert epsilon(noise, rate, steps + 1) >= base - slack
    assert epsilon(noise, min(1.0, 1.1 * rate), steps) >= base - slack
    assert epsilon(1.1 * noise, rate, steps) <= base + slack
    assert epsilon(noise, rate, steps, delta=2 * DELTA) <= base + slack


@given(noise=st.floats(0.8, 5), rate=st.floats(0.01, 1), steps=st.integers(1, 100))
@settings(max_examples=5, deadline=None)
def test_prv_is_tighter_than_rdp_and_monotone(noise: float, rate: float, steps: int) -> None:
    base = epsilon(noise, rate, steps, "prv")
    error = 0.02  # twice the error bound that the grid is made for
    assert 0 < base <= epsilon(noise, rate, steps, "rdp") + error
    assert epsilon(noise, rate, 2 * steps, "prv") >= base - error
    assert epsilon(1.2 * noise, rate, steps, "prv") <= base + error


@given(
    steps=st.lists(st.tuples(noises, rates, st.integers(1, 30)), min_size=1, max_size=5),
    cut=st.integers(0, 5),
    mechanism=st.sampled_from(MECHANISMS),
)
@settings(max_examples=10, deadline=None)
def test_a_resumed_run_is_the_uninterrupted_one(steps: list, cut: int, mechanism: str) -> None:
    whole, first = Accountant(mechanism, DELTA), Accountant(mechanism, DELTA)  # type: ignore[arg-type]
    for step in steps:
        whole.step(*step)
    for step in steps[:cut]:
        first.step(*step)
    resumed = Accountant(mechanism, DELTA)  # type: ignore[arg-type]
    resumed.step(3.0, 0.5)  # replaced by what is loaded
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in steps[cut:]:
        resumed.step(*step)
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.steps == whole.steps
    if mechanism == "rdp":
        assert resumed.epsilon() == whole.epsilon()


def test_a_saved_state_is_a_copy() -> None:
    accountant = Accountant("rdp", DELTA)
    accountant.step(1.0, 0.1)
    state = accountant.state_dict()
    accountant.step(1.0, 0.1)
    assert state["steps"] == [[1.0, 0.1, 1]]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(("target", "rate", "steps"), [(8.0, 0.1, 50), (2.0, 1.0, 10), (0.5, 0.02, 200)])
def test_the_noise_for_a_budget_meets_it_and_no_more(mechanism: str, target: float, rate: float, steps: int) -> None:
    noise = noise_multiplier_for(target, DELTA, rate, steps, mechanism)  # type: ignore[arg-type]
    assert isinstance(noise, float)
    assert 0.985 * target <= epsilon(noise, rate, steps, mechanism) <= target


def test_what_cannot_be_met_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"epsilon 0\.05 .* with 'rdp'"):
        noise_multiplier_for(0.05, DELTA, 0.1, 50)
    assert epsilon(noise_multiplier_for(0.05, DELTA, 0.1, 50, "prv"), 0.1, 50, "prv") <= 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, DELTA, 0.1, 10), "target epsilon"),
        ((math.inf, DELTA, 0.1, 10), "target epsilon"),
        ((math.nan, DELTA, 0.1, 10), "target epsilon"),
        ((1.0, 0.0, 0.1, 10), "delta 0.0"),
        ((1.0, DELTA, 0.0, 10), "sample rate 0.0"),
        ((1.0, DELTA, 0.1, 0), "0 steps"),
        ((1.0, DELTA, 0.1, 10, "gdp"), "mechanism 'gdp'"),
    ],
)
def test_impossible_budgets_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        noise_multiplier_for(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, 0.1), "noise multiplier -0.1"),
        ((math.inf, 0.1), "noise multiplier inf"),
        ((math.nan, 0.1), "noise multiplier nan"),
        (("1", 0.1), "noise multiplier '1'"),
        ((1.0, 0.0), "sample rate 0.0"),
        ((1.0, 1.01), "sample rate 1.01"),
        ((1.0, -0.5), "sample rate -0.5"),
        ((1.0, math.nan), "sample rate nan"),
        ((1.0, 0.1, -1), "-1 steps"),
        ((1.0, 0.1, 1.5), "1.5 steps"),
    ],
)
def test_steps_that_cannot_be_accounted_for_are_refused(arguments: tuple, message: str) -> None:
    accountant = Accountant("rdp", DELTA)
    with pytest.raises(PrivacyError, match=message):
        accountant.step(*arguments)
    assert accountant.epsilon() == 0.0


@pytest.mark.parametrize("sampling", ["shuffle", "fixed", "without replacement", ""])
def test_only_poisson_sampling_is_accounted_for(sampling: str) -> None:
    accountant = Accountant("rdp", DELTA)
    accountant.step(1.0, 0.1, sampling="poisson")
    with pytest.raises(PrivacyError, match="only 'poisson'"):
        accountant.step(1.0, 0.1, sampling=sampling)
    assert accountant.steps == 1


def test_mechanism_and_delta_are_fixed() -> None:
    with pytest.raises(PrivacyError, match="mechanism 'gdp': one of rdp, prv"):
        Accountant("gdp", DELTA)  # type: ignore[arg-type]
    for delta in (0.0, 1.0, -1e-5, math.nan, None):
        with pytest.raises(PrivacyError, match="delta"):
            Accountant("rdp", delta)  # type: ignore[arg-type]
    accountant = Accountant("rdp", DELTA)
    assert (accountant.mechanism, accountant.delta) == ("rdp", DELTA)
    with pytest.raises(AttributeError):
        accountant.delta = 1e-3  # type: ignore[misc]


GOOD = {"mechanism": "rdp", "delta": DELTA, "steps": [[1.0, 0.1, 3]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 1e-6}, "cannot be resumed"),
        ({"mechanism": "prv"}, "cannot be resumed"),
        ({"steps": None}, "not an accountant's state"),
        ({"more": 1}, "not an accountant's state"),
        ({"steps": [[1.0, 0.1]]}, "not an accountant's step"),
        ({"steps": [3]}, "not an accountant's step"),
        ({"steps": [[1.0, 0.1, 3], [-1.0, 0.1, 1]]}, "noise multiplier"),
        ({"steps": [[1.0, "x", 3]]}, "sample rate"),
        ({"steps": [[1.0, 0.1, 2.5]]}, "2.5 steps"),
    ],
)
def test_tampered_states_are_refused_and_change_nothing(change: dict, message: str) -> None:
    accountant = Accountant("rdp", DELTA)
    accountant.load_state_dict(GOOD)
    accountant.step(2.0, 0.5)
    before = accountant.state_dict()
    with pytest.raises(PrivacyError, match=message):
        accountant.load_state_dict({**GOOD, **change})
    with pytest.raises(PrivacyError):
        accountant.load_state_dict({})
    assert accountant.state_dict() == before


def test_prv_refuses_a_grid_beyond_all_measure_instead_of_allocating_it() -> None:
    with pytest.raises(PrivacyError, match=r"grid of .* use 'rdp'"):
        epsilon(0.2, 1.0, 3000, "prv")
    assert epsilon(0.2, 1.0, 3000, "rdp") > 1000


def test_numerical_trouble_in_opacus_is_a_refusal() -> None:
    # Opacus integrates a vanishing tail here, and SciPy warns that the integral may be wrong.
    with pytest.raises(PrivacyError, match="'prv' cannot account for this run"):
        epsilon(1.0, 1e-7, 10, "prv")


def test_known_warnings_stay_inside_and_settings_are_restored() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = warnings.filters[:]
        assert epsilon(200.0, 1.0, 3) > 0  # the largest order is best
        assert epsilon(0.1, 0.2, 100) > 100  # the smallest
        assert epsilon(2.0, 1.0, 3, "prv") > 0  # log(0) at rate 1
        assert warnings.filters == before
    assert np.geterr()["divide"] == "warn"


def test_the_sentence_names_the_unit_and_rounds_against_us() -> None:
    client = str(PrivacyStatement("client", 2.3001, DELTA))
    assert client == (
        "Adding or removing one client's entire data changes the distribution of everything revealed by at most "
        "(ε = 2.31, δ = 1e-5)."
    )
    example = str(PrivacyStatement("example", 1.1, DELTA, sampled=True))
    assert "one training example of one client" in example
    assert "ε = 1.10," in example
    assert "have in common is not protected" in example
    assert "nobody knowing which examples were sampled" in example


def test_the_sentence_without_privacy_says_so() -> None:
    assert str(PrivacyStatement("none")).startswith("No differential privacy")
    assert str(PrivacyStatement("client", math.inf, DELTA)) == str(PrivacyStatement("none"))


def test_statements_that_mean_nothing_are_refused() -> None:
    with pytest.raises(PrivacyError, match="unit 'user'"):
        PrivacyStatement("user", 1.0, DELTA)  # type: ignore[arg-type]
    for bad in (-1.0, math.nan):
        with pytest.raises(PrivacyError, match="epsilon"):
            PrivacyStatement("client", bad, DELTA)
    with pytest.raises(PrivacyError, match="delta"):
        PrivacyStatement("client", 1.0, 0.0)
