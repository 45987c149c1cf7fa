"""One party's parts of requests, and how the parties choose among them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum

from torch import Tensor

from encml.errors import ServingError
from encml.net.transport import PARTIES
from encml.serving.control import Answer, Candidate, Marker, Proposal, Statement, unfit
from encml.serving.registry import Model
from encml.serving.wire import QueryResult

MERGED_EXAMPLES = 128
"""Waiting requests for one model are computed together up to so many examples."""
FIRST_RETRY, LAST_RETRY = 0.0005, 0.1
"""Seconds until a request that lacks a part is proposed again: twice as long each time."""


class Verdict(IntEnum):
    """What becomes of a request."""

    RUN = 0
    LATER = 1
    """Others run first."""
    WAIT = 2
    """Some party lacks its part."""
    CAPPED = 3
    INCOMPLETE = 4
    DIFFERENT = 5
    MIXED = 6
    """The parties' files of the model do not belong together."""
    INCONSISTENT = 7
    """Two parties were sent different shares of the input."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on one request, and which parties are the reason if it is not to run."""

    verdict: Verdict
    ranks: tuple[int, ...] = ()


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
    digests: tuple[bytes, bytes] = field(init=False)
    """SHA-256 of what this party holds alike with the one before it, and with the next one."""

    def __post_init__(self) -> None:
        """Work out the digests, which takes a moment for large inputs."""
        self.digests = _digest(self.payload[0]), _digest(self.payload[1])

    @property
    def batch(self) -> int:
        """The number of examples."""
        return self.payload.shape[1]

    @property
    def candidate(self) -> Candidate:
        """The request as parties speak about it."""
        return Candidate(self.request, self.model.tag, self.batch)

    def proposal(self, now: float, part_wait: float) -> Proposal:
        """What party 0 says about it; late once it was spoken about for more than ``part_wait`` seconds."""
        late = self.proposed is not None and now - self.proposed > part_wait
        return Proposal(self.candidate, self.model.remaining, late)

    def retry(self, now: float) -> None:
        """Propose it again, later each time."""
        self.retry_at, self.retry_after = now + self.retry_after, min(2 * self.retry_after, LAST_RETRY)


def statement_of(candidate: Candidate, job: Job | None, marker: Marker) -> Statement:
    """What a party that has ``job`` says about ``candidate``."""
    if job is None:
        return Statement(Answer.MISSING)
    if job.candidate != candidate or job.model.remaining == 0:
        return Statement(Answer.DIFFERENT)
    model, shares = (marker.mark(job.request, digests) for digests in (job.model.digests, job.digests))
    return Statement(Answer.READY, model, shares)


def choose(
    proposals: Sequence[Proposal], said: Sequence[Sequence[Statement]], jobs: Sequence[Job | None]
) -> list[Decision]:
    """What becomes of party 0's proposals, oldest first, given what all parties said, by rank, about each.

    The first that all have runs, and with it those that may share its computation. One that lacks a part waits until
    it is late. Every party comes to the same result: ``jobs``, its own parts, only say what is the same at all parties
    that have them.
    """
    decisions: list[Decision] = []
    chosen: list[Job] = []
    for proposal, statements, job in zip(proposals, said, jobs, strict=True):
        decision = _judged(proposal, statements)
        if decision.verdict == Verdict.RUN and job is not None:
            if chosen and not _shares(job, chosen, proposal.remaining):
                decision = Decision(Verdict.LATER)
            else:
                chosen.append(job)
        decisions.append(decision)
    return decisions


def _judged(proposal: Proposal, said: Sequence[Statement]) -> Decision:
    """The decision on a request by itself."""
    answers = [statement.answer for statement in said]
    missing = tuple(rank for rank in range(PARTIES) if answers[rank] == Answer.MISSING)
    different = tuple(rank for rank in range(PARTIES) if answers[rank] == Answer.DIFFERENT)
    if proposal.remaining == 0:
        return Decision(Verdict.CAPPED)
    if missing:
        return Decision(Verdict.INCOMPLETE if proposal.late else Verdict.WAIT, missing)
    if different:
        return Decision(Verdict.DIFFERENT, different)
    if mixed := unfit([statement.model for statement in said]):
        return Decision(Verdict.MIXED, mixed)
    if inconsistent := unfit([statement.shares for statement in said]):
        return Decision(Verdict.INCONSISTENT, inconsistent)
    return Decision(Verdict.RUN)


def refusal(job: Job, decision: Decision, part_wait: float) -> ServingError:
    """The error for a request that is not to be computed."""
    name, ranks = job.model.part.name, decision.ranks
    if decision.verdict == Verdict.CAPPED:
        return CapReached(f"the request cap of {name!r} is reached; the owner may allow more")
    if decision.verdict == Verdict.INCOMPLETE:
        return ServingError(f"party {ranks[0]} did not get its part of this request within {part_wait:g} s")
    if decision.verdict == Verdict.INCONSISTENT:
        return ServingError("two parties were sent different shares of the same input")
    if decision.verdict == Verdict.MIXED:
        pairs = ", ".join(f"{(rank - 1) % PARTIES} and {rank}" for rank in ranks)
        return ServingError(
            f"the files of {name!r} that the parties {pairs} hold do not belong together; install the three files of "
            "one sharing, or of one training"
        )
    return ServingError(
        f"party {ranks[0]} does not serve the same sharing of {name!r}, or got a batch of another size; the owner may "
        "have just replaced or stopped the model"
    )


def _shares(job: Job, chosen: Sequence[Job], remaining: int | None) -> bool:
    """Whether a job may be computed together with those chosen already."""
    model = job.model
    if model.tag != chosen[0].model.tag or not model.separable:
        return False
    examples = job.batch + sum(other.batch for other in chosen)
    enough = remaining is None or len(chosen) < remaining
    return enough and examples <= min(MERGED_EXAMPLES, model.part.graph.largest_batch)


def _digest(share: Tensor) -> bytes:
    return hashlib.sha256(share.contiguous().numpy().data).digest()
