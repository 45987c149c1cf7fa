"""How party 0 chooses what runs: oldest first, together where rows stay apart, never beyond a cap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encml.serving.control import Answer, Candidate, Marker, Proposal, Statement
from encml.serving.jobs import LAST_RETRY, MERGED_EXAMPLES, Decision, Job, Verdict, choose, refusal, statement_of
from encml.serving.model_store import share_model
from encml.serving.registry import Model

FITTING = (b"a" * 16, b"a" * 16)
READY = Statement(Answer.READY, FITTING, FITTING)
MISSING, DIFFERENT = Statement(Answer.MISSING), Statement(Answer.DIFFERENT)
RUN, LATER, WAIT, CAPPED = (Decision(v) for v in (Verdict.RUN, Verdict.LATER, Verdict.WAIT, Verdict.CAPPED))


class Fixed(Marker):
    """Marks that are the digests themselves."""

    def __init__(self) -> None:
        self._keys = []

    def mark(self, request: bytes, digests: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        return digests[0][:16], digests[1][:16]


def chosen(jobs: list[Job], said: list[tuple[Statement, ...]] | None = None, now: float = 0.0) -> list[Decision]:
    proposals = [job.proposal(now, 2.0) for job in jobs]
    return choose(proposals, said or [(READY,) * 3] * len(jobs), jobs)


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
    assert chosen(jobs) == [RUN, LATER, RUN, LATER]
    assert chosen(jobs[1:]) == [RUN, LATER, LATER]


def test_together_they_stay_within_the_largest_batch(model: Model) -> None:
    jobs = [job(model, MERGED_EXAMPLES - 1), job(model, 2), job(model, 1)]
    assert chosen(jobs) == [RUN, LATER, RUN]
    assert chosen([job(model, 10 * MERGED_EXAMPLES)]) == [RUN]


def test_never_more_run_than_are_allowed(model: Model) -> None:
    model.remaining = 2
    assert chosen([job(model) for _ in range(4)]) == [RUN, RUN, LATER, LATER]
    # By party 0's count: it is the same for all that decide.
    jobs = [job(model) for _ in range(4)]
    proposals = [one.proposal(0.0, 2.0) for one in jobs]
    model.remaining = 1
    assert choose(proposals, [(READY,) * 3] * 4, jobs) == [RUN, RUN, LATER, LATER]
    model.remaining = 0
    assert chosen([job(model)], [(READY, DIFFERENT, MISSING)]) == [CAPPED]


def test_a_request_that_lacks_a_part_waits_but_not_for_ever(model: Model) -> None:
    waiting, other = job(model, proposed=10.0), job(model)
    said = [(READY, READY, MISSING), (READY,) * 3]
    times = []
    now = 10.0
    while chosen([waiting, other], said, now) == [Decision(Verdict.WAIT, (2,)), RUN]:
        waiting.retry(now)
        assert waiting.retry_at > now
        times.append(waiting.retry_at - now)
        now = waiting.retry_at
    late = Decision(Verdict.INCOMPLETE, (2,))
    assert chosen([waiting, other], said, now) == [late, RUN]
    assert 12.0 < now < 12.0 + 2 * LAST_RETRY
    assert times == sorted(times)
    assert len(times) < 50
    assert "party 2 did not get its part" in str(refusal(waiting, late, 2.0))


def test_parties_that_differ_are_named(model: Model) -> None:
    assert chosen([job(model)], [(READY, MISSING, DIFFERENT)]) == [Decision(Verdict.WAIT, (1,))]
    (decision,) = chosen([job(model)], [(READY, READY, DIFFERENT)])
    assert decision == Decision(Verdict.DIFFERENT, (2,))
    assert "party 2 does not serve the same sharing of 'apart'" in str(refusal(job(model), decision, 1.0))


def test_shares_that_do_not_fit_are_refused(model: Model) -> None:
    odd = Statement(Answer.READY, FITTING, (b"a" * 16, b"b" * 16))
    (decision,) = chosen([job(model)], [(READY, odd, READY)])
    assert decision == Decision(Verdict.INCONSISTENT, (2,))
    assert "different shares of the same input" in str(refusal(job(model), decision, 1.0))
    odd = Statement(Answer.READY, (b"b" * 16, b"a" * 16), FITTING)
    (decision,) = chosen([job(model)], [(odd, READY, READY)])
    assert decision == Decision(Verdict.MIXED, (0,))
    assert "'apart' that the parties 2 and 0 hold do not belong together" in str(refusal(job(model), decision, 1.0))


def test_all_parties_decide_alike() -> None:
    """Each from its own parts and what all said; whoever lacks a part cannot be the only one to run it."""
    parts = share_model(nn.Linear(2, 1), torch.randn(1, 2), "apart")
    models = [Model(part, None) for part in parts]
    shares = [torch.full((1, 1, 2), k) for k in range(3)]
    jobs: list[list[Job | None]] = []
    for rank, party in enumerate(models):
        payload = torch.stack([shares[rank], shares[(rank + 1) % 3]]).reshape(2, 1, 2)
        other = payload + (rank == 1)
        jobs.append([
            Job(b"0" * 16, party, payload),
            Job(b"1" * 16, party, other),
            None if rank == 2 else Job(b"2" * 16, party, payload),
            Job(b"3" * 16, party, payload),
        ])  # fmt: skip
    leads = [one for one in jobs[0] if one is not None]
    proposals = [one.proposal(0.0, 1.0) for one in leads]
    said = [
        tuple(statement_of(proposal.candidate, jobs[rank][place], Fixed()) for rank in range(3))
        for place, proposal in enumerate(proposals)
    ]
    for rank in range(3):
        assert choose(proposals, said, jobs[rank]) == [
            RUN,
            Decision(Verdict.INCONSISTENT, (1, 2)),
            Decision(Verdict.WAIT, (2,)),
            RUN,
        ]


def test_what_a_party_answers(model: Model) -> None:
    own, marker = job(model, 3, number=7), Fixed()
    assert own.candidate == Candidate(b"\7" * 16, model.tag, 3)
    assert own.proposal(0.0, 1.0) == Proposal(own.candidate)
    ready = statement_of(own.candidate, own, marker)
    assert ready.answer == Answer.READY
    assert ready.model == (model.digests[0][:16], model.digests[1][:16])
    assert ready.shares == (own.digests[0][:16], own.digests[1][:16])
    assert statement_of(own.candidate, None, marker) == MISSING
    assert statement_of(Candidate(b"\7" * 16, model.tag, 4), own, marker) == DIFFERENT
    assert statement_of(Candidate(b"\7" * 16, model.tag ^ 1, 3), own, marker) == DIFFERENT
    model.remaining = 0
    assert statement_of(own.candidate, own, marker) == DIFFERENT
