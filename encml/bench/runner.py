"""A whole benchmark: encml in one process, encml over TLS, and other libraries beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import torch

from encml.bench.beside import Interpreter, run_peer
from encml.bench.case import Case
from encml.bench.cases import choose
from encml.bench.line.laying import LaidLine, lay, netem_works
from encml.bench.machine import this_machine, work_of_others
from encml.bench.measuring import measure
from encml.bench.processes import run_parties
from encml.bench.records import Benchmark, CaseRecord, Declared, Distance, DistantCase, Peer, Run
from encml.mpc.session import Session
from encml.net.local import LocalTransport

Told = Callable[[str, str], None]
"""Hears where a case is done, and its name."""

IN_PROCESS, PARTIES = "in one process", "three parties over TLS"


def over(round_trip: float) -> str:
    """The place where parties run a round trip of so many seconds apart."""
    return f"{1000 * round_trip:g} ms apart"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: the cases that fit ``only``, see ``choose``; ``in_process`` and ``parties``: where.

    ``threads``: those that each process computes with. ``round_trips``: seconds of the lines over which the parties
    run as well, one after the other; ``bandwidth``: bits a second that each party can send over them.
    """

    only: tuple[str, ...]
    in_process: bool
    parties: bool
    repeats: int
    quick: bool
    threads: int
    peers: tuple[Interpreter, ...] = ()
    round_trips: tuple[float, ...] = ()
    bandwidth: float | None = None

    @property
    def cases(self) -> tuple[Case, ...]:
        """The chosen cases. Raises ConfigError for a pattern that fits nothing."""
        return choose(self.only)

    @property
    def steps(self) -> dict[str, int]:
        """Where cases run, in order, and how many."""
        places = [IN_PROCESS] * self.in_process + [PARTIES] * self.parties + [peer.name for peer in self.peers]
        places += map(over, self.round_trips)
        return dict.fromkeys(places, len(self.cases))


def run_benchmark(plan: Plan, told: Told) -> Benchmark:
    """Run it; ``told`` is called after every case.

    Raises PartyError where a party of encml fails, ConfigError where this machine allows no long lines.

    The places take turns, so nothing of the benchmark runs beside what is timed.
    """
    date, machine, cases = datetime.now(UTC), this_machine(plan.threads), plan.cases
    alone: dict[str, Run | str] = {}
    apart: dict[str, Run | str] = {}
    peers: list[Peer] = []
    distances: list[Distance] = []
    netem = bool(plan.round_trips) and netem_works()
    with work_of_others() as others:
        if plan.in_process:
            for case, outcome in _in_process(cases, plan.quick, plan.repeats, plan.threads):
                alone[case.name] = outcome
                told(IN_PROCESS, case.name)
        if plan.parties:
            for case, outcome in run_parties(cases, plan.quick, plan.repeats, plan.threads):
                apart[case.name] = outcome
                told(PARTIES, case.name)
        for peer in plan.peers:
            progress = partial(told, peer.name)
            peers.append(run_peer(peer, cases, plan.quick, plan.repeats, plan.threads, progress))
        for round_trip in plan.round_trips:
            with lay(round_trip, plan.bandwidth, netem) as line:
                distances.append(_distance(plan, line, partial(told, over(round_trip))))
    return Benchmark(
        date=date,
        only=plan.only,
        quick=plan.quick,
        repeats=plan.repeats,
        machine=machine,
        busy_cores=others[0],
        cases=tuple(_record(case, plan.quick, alone.get(case.name), apart.get(case.name)) for case in cases),
        peers=tuple(peers),
        distances=tuple(distances),
    )


def _in_process(cases: Sequence[Case], quick: bool, repeats: int, threads: int) -> Iterator[tuple[Case, Run | str]]:
    with _threads(threads):
        for case in cases:
            with Session(LocalTransport(), comparison_bits=case.comparison_bits) as session:
                yield case, measure(case, session, quick, repeats)


def _distance(plan: Plan, line: LaidLine, told: Callable[[str], None]) -> Distance:
    """All cases over the line; those that SharedTensor cannot do are left out."""
    found = []
    for case, outcome in run_parties(plan.cases, plan.quick, plan.repeats, plan.threads, line):
        if isinstance(outcome, Run):
            found.append(DistantCase(name=case.name, run=outcome))
        told(case.name)
    return line.report(found)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _record(case: Case, quick: bool, alone: Run | str | None, apart: Run | str | None) -> CaseRecord:
    declared = case.declaration(quick)
    return CaseRecord(
        name=case.name,
        group=case.group,
        does=case.title(quick),
        size=case.at(quick),
        declared=None if declared is None else Declared(rounds=declared[0], bytes_per_party=declared[1]),
        in_process=alone if isinstance(alone, Run) else None,
        parties=apart if isinstance(apart, Run) else None,
        unsupported=next((outcome for outcome in (alone, apart) if isinstance(outcome, str)), None),
    )
