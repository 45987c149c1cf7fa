"""The figures as tables for people: rows of text, for the terminal and for Markdown alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from encml.bench.records import Benchmark, CaseRecord, Declared, Machine, Peer, PeerCase, Run, Timed
from encml.experiment.text import bytes_text

_QUIET = 0.1
"""Up to this part of all cores, other programs hardly disturb."""
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: its title, a sentence about it, columns and rows; the first ``texts`` columns are text, then figures."""

    title: str
    about: str
    texts: int
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(benchmark: Benchmark) -> list[Grid]:
    """encml's own table, the memory of training steps where there are any, then one for each other library."""
    memory = memory_grid(benchmark)
    return [_own(benchmark), *([memory] if memory.rows else []), *(_beside(benchmark, p) for p in benchmark.peers)]


def memory_grid(benchmark: Benchmark) -> Grid:
    """Peak memory of each training step against its payload."""
    about = (
        "Payload: the shares, in one process, of parameters, inputs and labels, and of the outputs of all layers. "
        "Peak: those of parameters, inputs and labels, and all memory that the process takes on top of them during the "
        "step."
    )
    places = (("one process", "in_process"), ("three parties, TLS: the largest", "parties"))
    rows = [
        (case.does, where, bytes_text(given), bytes_text(kept), bytes_text(given + run.peak_bytes), f"{ratio:.1f}×")
        for case in benchmark.cases
        for where, field in places
        if (run := getattr(case, field)) is not None
        and (ratio := run.memory_ratio) is not None
        and (given := run.given_bytes) is not None
        and (kept := run.kept_bytes) is not None
    ]
    columns = ("step", "where", "parameters, inputs, labels", "outputs of layers", "peak", "peak / payload")
    return Grid("Memory of training steps", about, 2, columns, tuple(rows))


def machine_text(machine: Machine) -> str:
    """The machine and what ran on it, in a sentence."""
    memory = "" if machine.memory_bytes is None else f" and {machine.memory_bytes / 2**30:.0f} GiB of memory"
    cores = "1 core" if machine.cores == 1 else f"{machine.cores} cores"
    threads = "one thread" if machine.threads == 1 else f"{machine.threads} threads"
    which = machine.encml if machine.commit is None else f"at commit {machine.commit}"
    return (
        f"{machine.cpu}, {cores}{memory}, {machine.system}; encml {which}, "
        f"PyTorch {machine.packages['torch']}, Python {machine.python}; {threads} a process"
    )


def others_text(benchmark: Benchmark) -> str:
    """Whether other programs ran on the machine; empty where that is not known."""
    busy, cores = benchmark.busy_cores, benchmark.machine.cores
    if busy is None:
        return ""
    if busy < _QUIET * cores:
        return f"Other programs kept {busy:.2f} of {cores} cores busy meanwhile."
    return (
        f"The machine had other work at the same time ({busy:.1f} of {cores} cores): seconds are too long, and vary; "
        "rounds and bytes are what they always are."
    )


def _own(benchmark: Benchmark) -> Grid:
    alone = any(case.in_process for case in benchmark.cases)
    apart = any(case.parties for case in benchmark.cases)
    columns = ["case", "what", "rounds", "sent a party", "of declared", "worst error"]
    columns += ["one process", "memory"] * alone + ["three parties, TLS", "memory of one"] * apart
    rows = []
    for case in benchmark.cases:
        if case.run is None:
            rows.append((case.name, f"{case.does}: not supported", *[""] * (len(columns) - 2)))
            continue
        cells = [case.name, case.does, count_text(case.run.rounds), bytes_text(case.run.bytes_per_party)]
        cells += [_of_declared(case.run, case.declared), _error(case.run.worst_error)]
        cells += [*_time_and_memory(case.in_process)] * alone + [*_time_and_memory(case.parties)] * apart
        rows.append(tuple(cells))
    title = "encml" if not benchmark.quick else "encml, small sizes for a quick look"
    return Grid(title, "", 2, tuple(columns), tuple(rows))


def _beside(benchmark: Benchmark, peer: Peer) -> Grid:
    """Seconds, bytes and errors of both, and how they compare."""
    name, theirs = peer.name, {case.name: case for case in peer.cases}
    columns = ("case", "encml", name, f"encml / {name}", "encml sent", f"{name} sent", "encml error", f"{name} error")
    rows = [
        (
            case.does,
            span_text(case.run),
            span_text(theirs[case.name]),
            ratio_text(case.run.median, theirs[case.name].median),
            *_sent_and_errors(case.run, theirs[case.name]),
        )
        for case in benchmark.cases
        if case.run is not None and case.name in theirs
    ]
    return Grid(f"encml beside {peer.name} {peer.version}", f"{peer.name}: {peer.setting}.", 1, columns, tuple(rows))


def _sent_and_errors(ours: Run, theirs: PeerCase) -> tuple[str, str, str, str]:
    sent = "" if theirs.bytes_per_party is None else bytes_text(theirs.bytes_per_party)
    # Errors are compared where both have one.
    both = ours.worst_error is not None and theirs.worst_error is not None
    errors = (_error(ours.worst_error), _error(theirs.worst_error)) if both else ("", "")
    return bytes_text(ours.bytes_per_party), sent, *errors


def _time_and_memory(run: Run | None) -> tuple[str, str]:
    if run is None:
        return "", ""
    return span_text(run), "" if run.peak_bytes is None else bytes_text(run.peak_bytes)


def _of_declared(run: Run, declared: Declared | None) -> str:
    if declared is None:
        return ""
    same = run.rounds == declared.rounds and math.isclose(run.bytes_per_party, declared.bytes_per_party)
    return "the same" if same else ratio_text(run.bytes_per_party, declared.bytes_per_party)


def span_text(timed: Timed) -> str:
    """Median (smallest–largest), in the unit of the median: 12.3 ms (11.9–14.0)."""
    size, unit = _unit(timed.median)
    low, middle, high = (_digits(value / size, 3) for value in (min(timed.seconds), timed.median, max(timed.seconds)))
    return f"{middle} {unit} ({low}–{high})"


def time_text(seconds: float) -> str:
    """Three digits that count: 12.3 ms, 2.46 s."""
    size, unit = _unit(seconds)
    return f"{_digits(seconds / size, 3)} {unit}"


def _unit(seconds: float) -> tuple[float, str]:
    return next((entry for entry in _UNITS if seconds >= entry[0]), _UNITS[-1])


def ratio_text(ours: float, theirs: float) -> str:
    """ours / theirs: 0.42×."""
    return f"{_digits(ours / theirs, 2)}×" if theirs else ""


def count_text(rounds: float) -> str:
    """A number of rounds."""
    return f"{rounds:g}"


def _error(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def _digits(value: float, count: int) -> str:
    """So many digits that count, without an exponent: at three of them 0.0123, 1.23, 123, 12345."""
    places = 0 if value == 0 else count - 1 - math.floor(math.log10(value))
    return f"{value:.{max(0, places)}f}"


def unsupported_text(cases: tuple[CaseRecord, ...]) -> list[str]:
    """Why cases could not run, one line each."""
    return [f"{case.name}: {case.unsupported}" for case in cases if case.unsupported is not None]


def peer_problems_text(peer: Peer) -> list[str]:
    """What a peer failed at, and why, one line each; not what its script does not try."""
    ended = [] if peer.problem is None else [f"{peer.name}: {peer.problem}"]
    return [f"{peer.name}: {failure.name}: {failure.problem}" for failure in peer.failures if failure.problem] + ended
