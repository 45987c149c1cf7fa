"""How party 0 chooses what runs: oldest first, together where rows stay apart, never beyond a cap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encml.serving.control import Answer, Candidate, Decision, Verdict
from encml.serving.jobs import LAST_RETRY, MERGED_EXAMPLES, Job, answer_to, choose, refusal
from encml.serving.model_store import share_model
from encml.serving.registry import Model

READY = {1: Answer.READY, 2: Answer.READY}
RUN, LATER, CAPPED = Decision(Verdict.RUN), Decision(Verdict.LATER), Decision(Verdict.CAPPED)


class Across(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


@pytest.fixture
def model() -> Model:
    return Model(share_model(nn.Linear(2, 1), torch.randn(1, 2), "apart")[0], None)


@pytest.fixture
def mixing() -> Model:
    return Model(share_model(Across(), torch.randn(1, 2), "mixing")[0], None)


def job(model: Model, batch: int = 1, number: int = 0, **more: Any) -> Job:
    return Job(bytes([number] * 16), model, torch.zeros(2, batch, 2, dtype=torch.int64), **more)


def test_requests_for_one_model_run_together(model: Model, mixing: Model) -> None:
    jobs = [job(model), job(mixing), job(model), job(mixing)]
    assert choose(jobs, [READY] * 4, 0.0, 1.0) == [RUN, LATER, RUN, LATER]
    assert choose(jobs[1:], [READY] * 3, 0.0, 1.0) == [RUN, LATER, LATER]


def test_together_they_stay_within_the_largest_batch(model: Model) -> None:
    jobs = [job(model, MERGED_EXAMPLES - 1), job(model, 2), job(model, 1)]
    assert choose(jobs, [READY] * 3, 0.0, 1.0) == [RUN, LATER, RUN]
    assert choose([job(model, 10 * MERGED_EXAMPLES)], [READY], 0.0, 1.0) == [RUN]


def test_never_more_run_than_are_allowed(model: Model) -> None:
    model.remaining = 2
    assert choose([job(model) for _ in range(4)], [READY] * 4, 0.0, 1.0) == [RUN, RUN, LATER, LATER]
    model.remaining = 0
    assert choose([job(model)], [{1: Answer.DIFFERENT, 2: Answer.MISSING}], 0.0, 1.0) == [CAPPED]


def test_a_request_that_lacks_a_part_waits_but_not_for_ever(model: Model) -> None:
    waiting, other = job(model, proposed=10.0), job(model)
    said = [{1: Answer.READY, 2: Answer.MISSING}, READY]
    times = []
    now = 10.0
    while choose([waiting, other], said, now, 2.0) == [LATER, RUN]:
        assert waiting.retry_at > now
        times.append(waiting.retry_at - now)
        now = waiting.retry_at
    assert choose([waiting, other], said, now, 2.0) == [Decision(Verdict.INCOMPLETE, 2), RUN]
    assert 12.0 < now < 12.0 + 2 * LAST_RETRY
    assert times == sorted(times)
    assert len(times) < 50
    assert "party 2 did not get its part" in str(refusal(waiting, Decision(Verdict.INCOMPLETE, 2), 2.0))


def test_parties_that_differ_are_named(model: Model) -> None:
    assert choose([job(model)], [{1: Answer.MISSING, 2: Answer.DIFFERENT}], 0.0, 1.0) == [LATER]
    (decision,) = choose([job(model)], [{1: Answer.READY, 2: Answer.DIFFERENT}], 0.0, 1.0)
    assert decision == Decision(Verdict.DIFFERENT, 2)
    assert "party 2 does not serve the same sharing of 'apart'" in str(refusal(job(model), decision, 1.0))


def test_what_a_party_answers(model: Model) -> None:
    own = job(model, 3, number=7)
    assert own.candidate == Candidate(b"\7" * 16, model.tag, 3)
    assert answer_to(own.candidate, own) == Answer.READY
    assert answer_to(own.candidate, None) == Answer.MISSING
    assert answer_to(Candidate(b"\7" * 16, model.tag, 4), own) == Answer.DIFFERENT
    assert answer_to(Candidate(b"\7" * 16, model.tag ^ 1, 3), own) == Answer.DIFFERENT
    model.remaining = 0
    assert answer_to(own.candidate, own) == Answer.DIFFERENT
