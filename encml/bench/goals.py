"""What encml sets out to reach, case by case, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from encml.bench.records import Benchmark, CaseRecord
from encml.bench.text import Grid, count_text, ratio_text, time_text
from encml.experiment.text import bytes_text

MEMORY = 4.0
"""The peak of a training step's memory over its payload, at most; see ``encml.bench.text.memory_grid``."""
_FIRST_STEP = "network-a-cross-entropy"


@dataclass(frozen=True, slots=True)
class Published:
    """MNIST, batch 128, three semi-honest parties: seconds a step of MP-SPDZ and of TF-Encrypted.

    From the README of TF-Encrypted, whose authors measured both: three machines of four cores each, at 40 Gbit/s
    (``near``) or at 352 Mbit/s and 40 ms (``far``).
    """

    spdz_near: float
    spdz_far: float
    tfe_near: float
    tfe_far: float


PUBLISHED = {
    _FIRST_STEP: Published(0.098, 9.7, 0.167, 4.5),
    "network-b-cross-entropy": Published(0.571, 60.8, 5.33, 18.7),
    "network-c-cross-entropy": Published(1.175, 91.3, 8.20, 27.1),
    "network-d-cross-entropy": Published(0.134, 15.1, 0.439, 5.5),
}


@dataclass(frozen=True, slots=True)
class Goal:
    """At most so much for a case, at its full size, over three TLS processes; None: no matter how much.

    each: bytes a party and element, instead of bytes a party.
    relative: times the seconds of network A's step.
    """

    case: str
    seconds: float | None = None
    bytes_per_party: float | None = None
    each: float | None = None
    rounds: int | None = None
    relative: float | None = None
    memory: float | None = None


def _step(letter: str, megabytes: float) -> Goal:
    """No more against A's step than MP-SPDZ takes against its own."""
    name = f"network-{letter}-cross-entropy"
    relative = PUBLISHED[name].spdz_near / PUBLISHED[_FIRST_STEP].spdz_near
    return Goal(name, bytes_per_party=1e6 * megabytes, relative=relative, memory=MEMORY)


GOALS: tuple[Goal, ...] = (
    Goal(_FIRST_STEP, seconds=0.080, bytes_per_party=5e6, rounds=120, memory=MEMORY),
    Goal("seed-1", seconds=0.015, bytes_per_party=0.2e6),
    Goal("seed-64", seconds=0.120, bytes_per_party=10e6),
    Goal("seed-1-range", seconds=0.015, bytes_per_party=0.2e6),
    Goal("seed-64-range", seconds=0.120, bytes_per_party=10e6),
    Goal("relu", seconds=0.025, each=34),
    Goal("relu-32", each=22),
    Goal("matmul-512", seconds=0.050),
    Goal("matmul-layer", seconds=0.010),
    Goal("softmax", seconds=0.060),
    _step("b", 82),
    _step("c", 124),
    _step("d", 10.4),
)


def goals_grid(benchmark: Benchmark) -> Grid:
    """Every goal whose case ran over three TLS processes; the last column says by how much it was missed."""
    found = {case.name: case for case in benchmark.cases}
    first = found.get(_FIRST_STEP)
    rows = []
    for goal in GOALS:
        case = found.get(goal.case)
        if case is None or case.parties is None:
            continue
        parts = list(_parts(goal, case, first))
        missed = [f"{ratio_text(part.found, part.most)} {part.what}" for part in parts if part.found > part.most]
        most, measured = (", ".join(texts) for texts in zip(*((p.most_text, p.found_text) for p in parts), strict=True))
        rows.append((case.does, most, measured, ", ".join(missed) or "reached"))
    return Grid("Goals", "", 1, ("work", "at most", "measured", "reached, or missed by"), tuple(rows))


@dataclass(frozen=True, slots=True)
class _Part:
    what: str
    most: float
    found: float
    most_text: str
    found_text: str


def _parts(goal: Goal, case: CaseRecord, first: CaseRecord | None) -> Iterator[_Part]:
    """What a goal asks for, one thing after the other."""
    run = case.parties
    assert run is not None
    if goal.seconds is not None:
        yield _Part("seconds", goal.seconds, run.median, time_text(goal.seconds), time_text(run.median))
    if goal.relative is not None and first is not None and first.parties is not None:
        relative = run.median / first.parties.median
        texts = (f"{goal.relative:.3g} times network A's seconds", f"{relative:.3g} times ({time_text(run.median)})")
        yield _Part("seconds", goal.relative, relative, *texts)
    if goal.bytes_per_party is not None:
        sent = run.bytes_per_party
        texts = (f"{bytes_text(goal.bytes_per_party)} a party", bytes_text(sent))
        yield _Part("bytes", goal.bytes_per_party, sent, *texts)
    if goal.each is not None:
        each = run.bytes_per_party / case.size[0]
        yield _Part("bytes", goal.each, each, f"{goal.each:g} B a value", f"{each:.3g} B")
    if goal.rounds is not None:
        texts = (f"{goal.rounds} rounds", f"{count_text(run.rounds)} rounds")
        yield _Part("rounds", goal.rounds, run.rounds, *texts)
    if goal.memory is not None and run.memory_ratio is not None:
        texts = (f"{goal.memory:g}× its payload in memory", f"{run.memory_ratio:.1f}×")
        yield _Part("memory", goal.memory, run.memory_ratio, *texts)
