"""Running one case in a session, and what it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from encml.bench.case import Case, Job, worst_error
from encml.bench.memory import peak_memory
from encml.bench.records import Observed, Run
from encml.errors import UnsupportedOperation
from encml.mpc.session import Session
from encml.net.ledger import Cost
from encml.net.transport import PARTIES


def measure(case: Case, session: Session, quick: bool, repeats: int) -> Observed | str:
    """Run ``case`` ``repeats`` times and twice before: once so that everything is compiled, once to count.

    The counted run gives rounds, bytes, memory and the error of its result; the others, nothing but seconds, each from
    a moment at which all parties were ready. Returns why not, where SharedTensor lacks the function.
    """
    try:
        job = case.prepare(session, case.at(quick))
        job.run()
    except UnsupportedOperation as missing:
        return str(missing)
    with peak_memory() as memory, session.ledger.measure() as spent, _rounds(session) as rounds:
        result = job.run()
    error = None if result is None or job.expected is None else worst_error(result.reveal().detach(), job.expected)
    del result
    share_bytes = session.parties.shares_here * torch.int64.itemsize
    by_round = tuple(max(cost.sent) / case.loops for cost in rounds)
    return Observed(
        seconds=tuple(_timed(job, session) / case.loops for _ in range(repeats)),
        rounds=spent[0].rounds / case.loops,
        bytes_per_party=spent[0].bytes_per_party / case.loops,
        peak_bytes=memory[0],
        worst_error=error,
        critical_bytes=sum(by_round),
        by_round=by_round,
        given_bytes=None if job.payload is None else job.payload.given * share_bytes,
        kept_bytes=None if job.payload is None else job.payload.kept * share_bytes,
    )


def together(runs: tuple[Observed, Observed, Observed]) -> Run:
    """One record of what the three parties each saw: a party counts the bytes that it sent, and its own memory."""
    first = runs[0]
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    return Run(
        seconds=tuple(max(times) for times in zip(*(run.seconds for run in runs), strict=True)),
        rounds=first.rounds,
        # Each party has divided its own bytes by the number of parties, as if the others had sent none.
        bytes_per_party=sum(run.bytes_per_party for run in runs),
        peak_bytes=max(peaks, default=None),
        worst_error=first.worst_error,
        critical_bytes=sum(map(max, zip(*(run.by_round for run in runs), strict=True))),
        given_bytes=first.given_bytes,
        kept_bytes=first.kept_bytes,
    )


@contextmanager
def _rounds(session: Session) -> Iterator[list[Cost]]:
    """The yielded list receives the cost of every single round inside the block."""
    found: list[Cost] = []

    def note(_: str, cost: Cost) -> None:
        if cost.rounds:
            found.append(cost)

    session.ledger.listeners.append(note)
    try:
        yield found
    finally:
        session.ledger.listeners.remove(note)


def _timed(job: Job, session: Session) -> float:
    wait_for_all(session)
    start = time.perf_counter()
    job.run()
    return time.perf_counter() - start


def wait_for_all(session: Session) -> None:
    """Wait until all parties are here: after the second round each has heard, through its neighbour, of both others."""
    parties = session.parties
    for _ in range(PARTIES - 1):
        parties.net.rotate(torch.zeros(parties.here, 1, dtype=torch.uint8), +1, "meet")
