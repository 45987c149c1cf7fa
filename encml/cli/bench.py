"""The command ``bench``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from encml.bench.beside import parse_peer
from encml.bench.goals import GOALS, goals_grid
from encml.bench.markdown import markdown
from encml.bench.performance import distance_grid, lines_grid, performance
from encml.bench.records import Benchmark
from encml.bench.runner import Plan, Told, run_benchmark
from encml.bench.text import Grid, grids, machine_text, others_text, peer_problems_text, unsupported_text
from encml.cli.late import error_console
from encml.errors import ConfigError

_log = logging.getLogger(__name__)
_WIDE = 10_000
_INDENT = "    "


def bench(
    only: Sequence[str],
    in_process: bool | None,
    repeats: int,
    quick: bool,
    threads: int,
    peers: Sequence[str],
    round_trips: Sequence[float],
    bandwidth: float | None,
    goals: bool,
    figures: Path | None,
    json_file: Path | None,
    markdown_file: Path | None,
    performance_file: Path | None,
) -> None:
    """Measure, or read what was measured; print tables, and write files.

    Raises ConfigError, or PartyError where a party fails.
    """
    for path in (json_file, markdown_file):
        _check_writable(path)
    page = None if performance_file is None else _read(performance_file)
    plan = Plan(
        only=(*only, *(goal.case for goal in GOALS)) if goals else tuple(only),
        in_process=in_process is not False,
        parties=in_process is not True,
        repeats=repeats,
        quick=quick,
        threads=threads,
        peers=tuple(parse_peer(text) for text in peers),
        round_trips=tuple(milliseconds / 1000 for milliseconds in round_trips),
        bandwidth=None if bandwidth is None else 1e6 * bandwidth,
    )
    benchmark = _measured(plan) if figures is None else _loaded(figures)
    if json_file is not None:
        _write(json_file, benchmark.model_dump_json(indent=2) + "\n")
    if markdown_file is not None:
        _write(markdown_file, markdown(benchmark))
    if page is not None and performance_file is not None:
        _write(performance_file, performance(page, benchmark))
    console = Console()
    console.print(f"{machine_text(benchmark.machine)}. {others_text(benchmark)}", highlight=False)
    shown = [*grids(benchmark), *([goals_grid(benchmark)] if goals else [])]
    shown += [distance_grid(benchmark), lines_grid(benchmark)] if benchmark.distances else []
    for grid in shown:
        _show(console, grid)
    for line in unsupported_text(benchmark.cases):
        error_console.print(line, markup=False, soft_wrap=True)
    for peer in benchmark.peers:
        for line in peer_problems_text(peer):
            error_console.print(line, markup=False, soft_wrap=True)


def _measured(plan: Plan) -> Benchmark:
    if plan.peers and not plan.parties:
        raise ConfigError("--peer: other libraries run as processes that send; leave --in-process out")
    if plan.round_trips and not plan.parties:
        raise ConfigError("--round-trip: a line lies between processes; leave --in-process out")
    if plan.bandwidth is not None and not plan.round_trips:
        raise ConfigError("--bandwidth: is that of a line; give its --round-trip, too")
    with _progress(plan) as told:
        return run_benchmark(plan, told)


def _loaded(path: Path) -> Benchmark:
    try:
        return Benchmark.model_validate_json(_read(path))
    except ValidationError as error:
        raise ConfigError(f"--from {path}: not what encml bench --json writes: {error.errors()[0]['msg']}") from None


def _show(console: Console, grid: Grid) -> None:
    """A table where the terminal is wide enough for all columns, else some lines for each row."""
    table = Table(title=grid.title, caption=grid.about or None)
    for place, name in enumerate(grid.columns):
        table.add_column(name, justify="right" if place >= grid.texts else "left")
    for row in grid.rows:
        table.add_row(*row)
    if console.measure(table, options=console.options.update(width=_WIDE)).maximum <= console.width:
        console.print(table)
        return
    console.print(Text(grid.title, "bold underline"))
    for row in grid.rows:
        console.print(Text(": ".join(row[: grid.texts]), "bold"), soft_wrap=True)
        cells = [f"{name}: {cell}" for name, cell in zip(grid.columns, row, strict=True) if cell][grid.texts :]
        for line in _packed(cells, console.width - len(_INDENT)):
            console.print(Text(_INDENT + line), soft_wrap=True)
    console.print(Text(grid.about))


def _packed(cells: Sequence[str], width: int) -> list[str]:
    """As many cells a line as fit; none is broken."""
    lines: list[str] = []
    for cell in cells:
        joined = f"{lines[-1]} · {cell}" if lines else ""
        if lines and len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(cell)
    return lines


@contextmanager
def _progress(plan: Plan) -> Iterator[Told]:
    """A bar for each place on a terminal, else a line in the log for each case."""
    if not error_console.is_terminal:
        yield lambda place, name: _log.info("%s: %s", place, name)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}"),
    )
    # Drawn seldom: what is timed in this process shares it with the display.
    with Progress(*columns, console=error_console, transient=True, refresh_per_second=2) as progress:
        tasks = {
            place: progress.add_task(place, total=count, start=False, last="") for place, count in plan.steps.items()
        }
        yield _teller(progress, tasks)


def _teller(progress: Progress, tasks: dict[str, TaskID]) -> Callable[[str, str], None]:
    progress.start_task(next(iter(tasks.values())))

    def told(place: str, name: str) -> None:
        progress.start_task(tasks[place])
        progress.update(tasks[place], advance=1, last=name)

    return told


def _check_writable(path: Path | None) -> None:
    """Before minutes of measuring rather than after."""
    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
