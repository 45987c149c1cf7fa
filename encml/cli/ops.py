"""The command ``ops``."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from encml.cli.late import error_console
from encml.coverage.kinds import KINDS
from encml.coverage.page import WORDS, cost_text, error_text, markdown, problems, summary
from encml.coverage.reasons import load_reasons
from encml.coverage.results import Operator, Status, Table, read_table, write_table
from encml.errors import ConfigError

_COLOURS: dict[Status, str] = {
    "yes": "green",
    "partly": "yellow",
    "no": "red",
    "wrong": "bold red",
    "defect": "bold red",
}


_WIDE = 130
"""Columns of a terminal on which everything has room."""


def show(names: list[str], json_file: Path | None, markdown_file: Path | None) -> None:
    """Print what was measured when this version was made, and write files. Raises ConfigError."""
    table = read_table()
    present(table, _chosen(table, names), json_file, markdown_file)


def present(table: Table, chosen: list[Operator], json_file: Path | None, markdown_file: Path | None) -> None:
    """Print the chosen part of a table; write all of it to the files. Raises ConfigError."""
    for path in (json_file, markdown_file):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}")
    reasons = load_reasons()
    console = Console()
    for kind in KINDS:
        rows = [o for o in chosen if o.kind == kind]
        if rows:
            console.print(_rich(kind, rows, console.width >= _WIDE))
    for operator in chosen:
        reason = reasons.of(operator.name)
        message = operator.value.message or operator.gradient.message
        why = reason.reason if reason is not None and not operator.works else message
        if why and (len(chosen) < len(table.operators) or operator.value.status in ("wrong", "defect")):
            console.print(f"[bold]{operator.name}[/bold]: ", end="")
            console.print(why, markup=False, highlight=False)
    if len(chosen) == len(table.operators):
        totals = RichTable(show_header=False, box=None)
        for what, count in summary(table, reasons):
            totals.add_row(what, str(count))
        console.print(totals)
    console.print(
        f"Measured with encml {table.encml} and PyTorch {table.torch} on {table.date}; {table.fraction_bits} fraction "
        "bits; bytes a party and element.",
        style="dim",
    )
    if json_file is not None:
        write_table(table, json_file)
    if markdown_file is not None:
        markdown_file.write_text(markdown(table, reasons), encoding="utf-8")


def bar() -> Progress:
    """A progress bar for the operators."""
    return Progress(
        TextColumn("{task.description:<40.40}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=error_console,
        transient=True,
        disable=not error_console.is_terminal,
    )


def warn_about_problems(table: Table) -> None:
    """Say on stderr what is neither supported nor refused for a reason."""
    for problem in problems(table, load_reasons()):
        typer.echo(problem, err=True)


def matching(known: list[str], names: list[str]) -> list[str]:
    """The operators that are named, in full, by a part or by a pattern; all if none is. Raises ConfigError."""
    chosen: list[str] = []
    for name in names:
        found = [k for k in known if fnmatchcase(k, name)] or [k for k in known if name in k]
        if not found:
            near = ", ".join(difflib.get_close_matches(name, known, 5, 0.4))
            raise ConfigError(f"no operator {name!r} in PyTorch's database; near: {near or 'none'}")
        chosen += [k for k in found if k not in chosen]
    return chosen if names else known


def _chosen(table: Table, names: list[str]) -> list[Operator]:
    wanted = set(matching([o.name for o in table.operators], names))
    return [o for o in table.operators if o.name in wanted]


def _rich(kind: str, operators: list[Operator], wide: bool) -> RichTable:
    """A chapter; ``wide``: with the forms in place and the costs of gradients."""
    table = RichTable(title=kind, title_justify="left", title_style="bold")
    table.add_column("operator", overflow="fold")
    for heading in ("value", "gradient", *(["in place"] if wide else []), "error"):
        table.add_column(heading, no_wrap=True)
    for heading in ("rounds", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    if wide:
        table.add_column("backward: error", no_wrap=True)
        for heading in ("rounds", "bytes"):
            table.add_column(heading, justify="right", no_wrap=True)
    for o in operators:
        states = [o.value.status, o.gradient.status, *([o.in_place.status] if wide else [])]
        cells = [f"[{_COLOURS[s]}]{WORDS[s]}[/]" if s in _COLOURS else WORDS[s] for s in states]
        cells += [error_text(o.value), *cost_text(o.value)]
        table.add_row(o.name, *cells, *((error_text(o.gradient), *cost_text(o.gradient)) if wide else ()))
    return table
