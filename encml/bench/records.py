"""What the benchmark found, typed, as it is written to JSON."""

from __future__ import annotations

import statistics
from datetime import datetime
from typing import Literal

from pydantic import Field

from encml.experiment.metrics import Environment, Record

Seconds = tuple[float, ...]


class Timed(Record):
    """Seconds of every repeat, in order."""

    seconds: Seconds = Field(min_length=1)

    @property
    def median(self) -> float:
        """The repeat in the middle."""
        return statistics.median(self.seconds)


class Run(Timed):
    """One case where it ran: of one session, or, while three parties report, of one of them.

    ``bytes_per_party`` is payload sent, averaged over the parties. ``seconds`` of real parties: until the last of them
    was done. ``peak_bytes``: see ``encml.bench.memory``; of real parties the largest. ``worst_error``: the largest
    |found - true| / max(|true|, 1/8) against float64. ``critical_bytes``: the sum over the rounds of what that party
    sent that sent most, for which the others wait. ``given_bytes`` and ``kept_bytes``, of training steps: the shares of
    ``encml.bench.case.Payload`` in a process.
    """

    rounds: float
    bytes_per_party: float
    peak_bytes: int | None
    worst_error: float | None
    critical_bytes: float = 0.0
    given_bytes: int | None = None
    kept_bytes: int | None = None

    @property
    def memory_ratio(self) -> float | None:
        """All that the step held at its peak, what it was given included, over the payload; None where not known."""
        if self.peak_bytes is None or self.given_bytes is None or self.kept_bytes is None:
            return None
        return (self.given_bytes + self.peak_bytes) / (self.given_bytes + self.kept_bytes)


class Observed(Run):
    """What one session saw: all three parties in one process, or one of them.

    ``by_round``: bytes that were sent in every round, by that party here that sent most.
    """

    by_round: tuple[float, ...]


class PartyLine(Record):
    """What a party reports of one case: its figures, or why SharedTensor cannot do it."""

    name: str
    outcome: Observed | str


class Declared(Record):
    """What the case should cost, from the library's own table."""

    rounds: int
    bytes_per_party: float


class CaseRecord(Record):
    """One case. ``unsupported`` says why it could not run."""

    name: str
    group: str
    does: str
    size: tuple[int, ...]
    declared: Declared | None
    in_process: Run | None = None
    parties: Run | None = None
    unsupported: str | None = None

    @property
    def run(self) -> Run | None:
        """Where it ran; real parties first."""
        return self.parties or self.in_process


class PeerCase(Timed):
    """The same case in another library. ``rounds``: SPU's messages, CrypTen's calls to communicate."""

    name: str
    rounds: float | None = None
    bytes_per_party: float | None = None
    worst_error: float | None = None


class PeerFailure(Record):
    """A case that the other library did not do, and why; nothing, where its script does not have the case."""

    name: str
    problem: str


class Peer(Record):
    """Another library: how it was set up, and what it took. ``problem``: what ended it early."""

    name: str
    version: str
    setting: str
    cases: tuple[PeerCase, ...]
    failures: tuple[PeerFailure, ...]
    problem: str | None


class DistantCase(Record):
    """One case over a long line; ``run.seconds`` are those of the last party."""

    name: str
    run: Run


class Distance(Record):
    """The cases over a long line between the three parties; see ``encml.bench.line``.

    ``round_trip``: seconds; ``bandwidth``: bits a second that each party can send, None for as many as the machine can.
    Both again as plain TCP found them between two parties, just before. ``made_by``: "netem" or "router". ``dropped``:
    packets that found the router's buffer full; None where netem counts them.
    """

    round_trip: float
    bandwidth: float | None
    made_by: Literal["netem", "router"]
    congestion_control: str
    measured_round_trip: float
    measured_bandwidth: float
    dropped: int | None
    cases: tuple[DistantCase, ...]


class Machine(Environment):
    """Where the benchmark ran; ``threads`` are those that each process computed with."""

    commit: str | None
    cpu: str
    memory_bytes: int | None
    threads: int


class Benchmark(Record):
    """A whole benchmark."""

    schema_version: Literal[1] = 1
    date: datetime
    only: tuple[str, ...]
    """The patterns by which cases were chosen; empty: all of them."""
    quick: bool
    repeats: int
    machine: Machine
    busy_cores: float | None
    """How many of the machine's cores other programs kept busy meanwhile, on average."""
    cases: tuple[CaseRecord, ...]
    peers: tuple[Peer, ...]
    distances: tuple[Distance, ...] = ()
