"""One party's parts of requests, and how party 0 chooses among them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from encml.errors import ServingError
from encml.net.transport import PARTIES
from encml.serving.control import Answer, Candidate, Decision, Verdict
from encml.serving.registry import Model
from encml.serving.wire import QueryResult

MERGED_EXAMPLES = 128
"""Waiting requests for one model are computed together up to so many examples."""
FIRST_RETRY, LAST_RETRY = 0.0005, 0.1
"""Seconds until a request that lacks a part is proposed again: twice as long each time."""


class CapReached(ServingError):
    """The request cap of a model is reached."""


class Busy(ServingError):
    """More requests wait than this party keeps."""


@dataclass(slots=True, eq=False, repr=False)
class Job:
    """One party's part of a request: the shares of the input (2, batch, *shape), and where the answer goes."""

    request: bytes
    model: Model
    payload: Tensor
    result: Future[tuple[Tensor, QueryResult]] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    proposed: float | None = None
    """When party 0 first spoke about it."""
    retry_at: float = 0.0
    retry_after: float = FIRST_RETRY

    @property
    def batch(self) -> int:
        """The number of examples."""
        return self.payload.shape[1]

    @property
    def candidate(self) -> Candidate:
        """The request as parties speak about it."""
        return Candidate(self.request, self.model.tag, self.batch)


def answer_to(candidate: Candidate, job: Job | None) -> Answer:
    """What a party that has ``job`` says about ``candidate``."""
    if job is None:
        return Answer.MISSING
    return Answer.READY if job.candidate == candidate and job.model.remaining != 0 else Answer.DIFFERENT


def choose(
    jobs: Sequence[Job], answers: Sequence[Mapping[int, Answer]], now: float, part_wait: float
) -> list[Decision]:
    """Party 0's decisions on its ``jobs``, oldest first, given what the others said, by rank, about each.

    The first that all have runs, and with it those that may share its computation. One that lacks a part is proposed
    again, later each time, until ``part_wait`` seconds after it was first proposed.
    """
    decisions: list[Decision] = []
    chosen: list[Job] = []
    for job, said in zip(jobs, answers, strict=True):
        missing = [rank for rank, answer in said.items() if answer == Answer.MISSING]
        different = [rank for rank, answer in said.items() if answer == Answer.DIFFERENT]
        if job.model.remaining == 0:
            decisions.append(Decision(Verdict.CAPPED))
        elif missing and job.proposed is not None and now - job.proposed > part_wait:
            decisions.append(Decision(Verdict.INCOMPLETE, missing[0]))
        elif missing:
            job.retry_at, job.retry_after = now + job.retry_after, min(2 * job.retry_after, LAST_RETRY)
            decisions.append(Decision(Verdict.LATER))
        elif different:
            decisions.append(Decision(Verdict.DIFFERENT, different[0]))
        elif not chosen or _shares(job, chosen):
            chosen.append(job)
            decisions.append(Decision(Verdict.RUN))
        else:
            decisions.append(Decision(Verdict.LATER))
    return decisions


def refusal(job: Job, decision: Decision, part_wait: float) -> ServingError:
    """The error for a request that is not to be computed."""
    name, rank = job.model.part.name, decision.rank
    if decision.verdict == Verdict.CAPPED:
        return CapReached(f"the request cap of {name!r} is reached; the owner may allow more")
    if decision.verdict == Verdict.INCOMPLETE:
        return ServingError(f"party {rank} did not get its part of this request within {part_wait:g} s")
    return ServingError(
        f"party {rank} does not serve the same sharing of {name!r}, or got a batch of another size; the owner may have "
        "just replaced or stopped the model"
    )


def mixed_up(model: Model, parties: int) -> ServingError:
    """The error for a model whose shares do not fit; bit i of ``parties``: those of i do not fit to the one before."""
    pairs = [f"{(rank - 1) % PARTIES} and {rank}" for rank in range(PARTIES) if parties >> rank & 1]
    return ServingError(
        f"the files of {model.part.name!r} that the parties {', '.join(pairs)} hold do not belong together; install "
        "the three files of one sharing, or of one training"
    )


def _shares(job: Job, chosen: Sequence[Job]) -> bool:
    """Whether a job may be computed together with those chosen already."""
    model = job.model
    if model is not chosen[0].model or not model.separable:
        return False
    examples = job.batch + sum(other.batch for other in chosen)
    enough = model.remaining is None or len(chosen) < model.remaining
    return enough and examples <= min(MERGED_EXAMPLES, model.part.graph.largest_batch)
