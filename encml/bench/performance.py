"""The tables of docs/performance.md: they are put between marks, and what stands around them is left as it is."""

from __future__ import annotations

import re

from encml.bench.goals import PUBLISHED, goals_grid
from encml.bench.markdown import grid_text, paragraph
from encml.bench.records import Benchmark, CaseRecord, Distance, Run
from encml.bench.text import Grid, count_text, machine_text, memory_grid, others_text, time_text
from encml.errors import ConfigError
from encml.experiment.text import bytes_text


def performance(page: str, benchmark: Benchmark) -> str:
    """The page with every table that the benchmark has figures for made anew.

    Raises ConfigError where the page lacks the marks of one.
    """
    blocks = {
        "goals": [goals_grid(benchmark)],
        "memory": [memory_grid(benchmark)],
        "distance": [distance_grid(benchmark), lines_grid(benchmark)] if benchmark.distances else [],
    }
    for name, grids in blocks.items():
        text = "\n".join(grid_text(grid) for grid in grids if grid.rows)
        if text:
            page = _replaced(page, name, f"{_made(benchmark)}\n{text}")
    return page


def predicted(run: Run, distance: Distance) -> float:
    """Seconds over a line: half a round trip for every round, the bytes on their way, and what loopback takes.

    A round's bytes are those of the party that sends most in it.
    """
    sending = 0.0 if distance.bandwidth is None else 8 * run.critical_bytes / distance.bandwidth
    return run.rounds * distance.round_trip / 2 + sending + run.median


def distance_grid(benchmark: Benchmark) -> Grid:
    """Every case at every distance, predicted and measured, and what others have published."""
    found = [{case.name: case.run for case in distance.cases} for distance in benchmark.distances]
    far = [f"{1000 * distance.round_trip:g} ms" for distance in benchmark.distances]
    columns = ["case", "rounds", "sent a party", "largest by round", "loopback"]
    columns += [name for text in far for name in (f"{text}: predicted", "measured")]
    columns += ["MP-SPDZ, published, 40 ms", "TF-Encrypted, published, 40 ms"]
    rows = []
    for case in benchmark.cases:
        if case.parties is None or not any(case.name in runs for runs in found):
            continue
        cells = [case.does, count_text(case.parties.rounds), bytes_text(case.parties.bytes_per_party)]
        cells += [bytes_text(case.parties.critical_bytes), time_text(case.parties.median)]
        for distance, runs in zip(benchmark.distances, found, strict=True):
            cells += [time_text(predicted(case.parties, distance))]
            cells += [time_text(runs[case.name].median) if case.name in runs else ""]
        rows.append((*cells, *_published(case)))
    return Grid("Distance", "", 1, tuple(columns), tuple(rows))


def lines_grid(benchmark: Benchmark) -> Grid:
    """The lines as they were asked for, and as plain TCP found them."""
    columns = ("line", "made by", "TCP", "round trip of a byte", "bandwidth", "bandwidth found", "packets dropped")
    rows = [
        (
            f"{1000 * line.round_trip:g} ms",
            line.made_by,
            line.congestion_control,
            time_text(line.measured_round_trip),
            "no limit" if line.bandwidth is None else _rate(line.bandwidth),
            _rate(line.measured_bandwidth),
            "" if line.dropped is None else str(line.dropped),
        )
        for line in benchmark.distances
    ]
    return Grid("Lines", "", 3, columns, tuple(rows))


def _published(case: CaseRecord) -> tuple[str, str]:
    if case.name not in PUBLISHED:
        return "", ""
    return time_text(PUBLISHED[case.name].spdz_far), time_text(PUBLISHED[case.name].tfe_far)


def _rate(bits: float) -> str:
    return f"{bits / 1e6:.3g} Mbit/s" if bits < 1e9 else f"{bits / 1e9:.3g} Gbit/s"


def _made(benchmark: Benchmark) -> str:
    quick = " Sizes are small, for a quick look." if benchmark.quick else ""
    made = f"Measured on {benchmark.date:%Y-%m-%d}, {benchmark.repeats} repeats: {machine_text(benchmark.machine)}."
    return paragraph(f"{made} {others_text(benchmark)}{quick}")


def _replaced(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name}: written by encml bench -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        raise ConfigError(f"--performance: the page has no place for this table; it needs the lines {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n{text}{end}", page, count=1)
