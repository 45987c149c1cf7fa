"""The command ``functions``."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from encml.cli.late import error_console
from encml.coverage.functions import Precision, known_functions, measure
from encml.errors import ConfigError

_HEADINGS = (
    "function",
    "worst error below 1/8 (ulp)",
    "mean (ulp)",
    "worst relative error from 1/8 on",
    "of what is allowed",
    "at",
    "rounds",
    "bytes a party",
    "beyond its domain",
)

_PAGE = """\
# Functions

How precise the functions of secrets are, and what they cost, at 16 fraction bits (1 ulp = 2^-16 = 1.5e-5). Measured, by
comparison with float64, on some {inputs:,} inputs each: powers of two and their neighbours, the smallest numbers, the
ends of the range, points where pieces and whole powers meet, and random numbers over all sizes from 2^-16 to 2^30.
This page is written by

```sh
encml functions --markdown docs/functions.md
```

Allowed are 2 ulp (mish: 4) or, for exp, log, reciprocal, sqrt, rsqrt, divide and softmax, 2^-12 = 2.4e-4 of the result
if that is more. The tests assert it, and rounds and bytes exactly (bytes: an element, averaged over the parties;
softmax: a row of ten). A function whose results stay small has no relative error.

{table}

How they work is said above each of them in `encml/mpc/functions/`: the leading digit of a secret is found from the top
without computing its bits, tables give whole powers of two, and one short polynomial the rest; curves are cubic pieces
on a grid whose cell is read from the bits. Derivatives use what the function has found out about its argument.
"""


def functions(names: list[str], json_file: Path | None, markdown_file: Path | None) -> None:
    """Measure, print the table, and write files. Raises ConfigError for an unknown function."""
    known = known_functions()
    for name in names:
        if name not in known:
            raise ConfigError(f"no function {name!r}; there are: {', '.join(known)}")
    for path in (json_file, markdown_file):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}")
    chosen = names or known
    found = [measure(name) for name in track(chosen, "measuring", console=error_console, transient=True)]
    if json_file is not None:
        json_file.write_text(dumps([asdict(row) for row in found], indent=2) + "\n", encoding="utf-8")
    if markdown_file is not None:
        markdown_file.write_text(_page(found), encoding="utf-8")
    table = Table(*_HEADINGS)
    for row in found:
        table.add_row(*_cells(row))
    Console().print(table)


def _cells(row: Precision) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.worst_ulp:.2f}",
        f"{row.mean_ulp:.2f}",
        f"{row.worst_relative:.1e}" if row.relative else "",
        f"{row.worst_of_bound:.0%}",
        " / ".join(f"{value:.6g}" for value in row.worst_at),
        str(row.rounds),
        f"{row.bytes_per_party:,.0f}",
        row.outside,
    )


def _page(found: list[Precision]) -> str:
    lines = [_HEADINGS, ("---",) * len(_HEADINGS), *(_cells(row) for row in found)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    inputs = min(row.inputs for row in found)
    return _PAGE.format(table=table, inputs=inputs // 1000 * 1000)
