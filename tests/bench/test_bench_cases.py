"""Every case runs, gives what it should, and costs what the library declares."""

from __future__ import annotations

import math

import pytest
import torch

from encml.bench.case import Case, Job, spread, worst_error
from encml.bench.cases import BY_NAME, CASES, choose
from encml.bench.measuring import measure, together
from encml.bench.records import Observed, Run
from encml.errors import ConfigError
from encml.mpc.costs import COSTS
from encml.mpc.session import Session
from encml.net.local import LocalTransport
from encml.tensor import share

NETWORK_ERROR = 2.0**-8
"""Of scores, over a network's layers."""
ERROR = 2.0**-12
"""Two units of the last of 16 fraction bits, or 2^-12 of the result."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_runs_is_right_and_costs_what_is_declared(case: Case) -> None:
    with Session(LocalTransport(), comparison_bits=case.comparison_bits, seed=3) as session:
        run = measure(case, session, quick=True, repeats=2)
    assert isinstance(run, Run), run
    assert len(run.seconds) == 2
    assert run.rounds > 0
    assert run.bytes_per_party > 0
    declared = case.declaration(quick=True)
    if declared is not None:
        assert (run.rounds, run.bytes_per_party) == (declared[0], pytest.approx(declared[1]))
    if run.worst_error is not None:
        assert run.worst_error <= (NETWORK_ERROR if case.group == "networks" else ERROR)


def test_primitives_are_declared_and_results_are_compared() -> None:
    declared = {case.declared[0] for case in CASES if case.declared is not None and case.group == "primitives"}
    assert declared == {"product", "product_truncate", "positive", "relu", "select"}
    assert declared <= set(COSTS)
    with Session(LocalTransport()) as session:
        uncompared = [case.name for case in CASES if case.prepare(session, case.quick).expected is None]
    assert uncompared == ["round", "network-a-mse", *(f"network-{letter}-cross-entropy" for letter in "abcd")]


def test_names_are_unique_and_quick_sizes_are_small() -> None:
    assert len(BY_NAME) == len(CASES)
    assert not set(BY_NAME) & {case.group for case in CASES}
    for case in CASES:
        assert len(case.size) == len(case.quick)
        assert math.prod(case.quick) <= math.prod(case.size)
        assert case.title(quick=True)


def test_cases_are_chosen_by_name_group_and_pattern() -> None:
    assert choose([]) == CASES
    assert [case.name for case in choose(["matmul*", "relu"])] == ["relu", "matmul-512", "matmul-layer"]
    assert {case.group for case in choose(["networks"])} == {"networks"}


def test_a_pattern_that_fits_nothing_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="did you mean 'relu'") as caught:
        choose(["matmul*", "rleu"])
    assert all(name in str(caught.value) for name in BY_NAME)


def test_a_case_without_the_function_says_so() -> None:
    def prepare(session: Session, size: tuple[int, ...]) -> Job:
        x = share(torch.ones(size), session=session)
        return Job(lambda: torch.special.bessel_j0(x))

    case = Case("bessel", "functions", "", (4,), (4,), prepare)
    with Session(LocalTransport()) as session:
        found = measure(case, session, quick=True, repeats=1)
    assert isinstance(found, str)
    assert "bessel_j0" in found


def test_test_values_are_shared_as_they_are() -> None:
    for low, high in ((0.01, 1000.0), (-8.0, 8.0)):
        values = spread(1000, low, high)
        assert torch.equal(values * 2**16, torch.round(values * 2**16))
        assert values.min() == pytest.approx(low, abs=2e-5)
        assert values.max() == pytest.approx(high)


def test_errors_are_relative_down_to_an_eighth() -> None:
    truth = torch.tensor([100.0, 0.0, -1.0], dtype=torch.float64)
    assert worst_error(truth + torch.tensor([1.0, 0.0, 0.0]), truth) == pytest.approx(0.01)
    assert worst_error(truth + torch.tensor([0.0, 0.5, 0.0]), truth) == pytest.approx(4)
    assert worst_error(truth + torch.tensor([0.0, torch.nan, 0.0]), truth) == math.inf


def test_parties_reports_become_one() -> None:
    zero, one, two = (
        Observed(seconds=s, rounds=3, bytes_per_party=b, peak_bytes=p, worst_error=0.1, by_round=r)
        for s, b, p, r in (
            ((1.0, 5.0), 10, 7, (4.0, 0.0, 6.0)),
            ((2.0, 4.0), 20, None, (1.0, 19.0, 0.0)),
            ((3.0, 3.0), 30, 9, (2.0, 28.0, 0.0)),
        )
    )
    assert together((zero, one, two)) == Run(
        seconds=(3.0, 5.0), rounds=3, bytes_per_party=60, peak_bytes=9, worst_error=0.1, critical_bytes=38
    )
