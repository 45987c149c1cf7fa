"""The command ``ops --measure``: it needs PyTorch's database of operators, which the other form does not."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import torch

from encml.cli.ops import bar, matching, present, warn_about_problems
from encml.coverage.measure import F, measure
from encml.coverage.results import Table
from encml.coverage.samples import operators
from encml.errors import ConfigError
from encml.experiment.metrics import encml_version


def remeasure(names: list[str], json_file: Path | None, markdown_file: Path | None) -> None:
    """Measure the named operators, or all; print the table and write it to the files. Raises ConfigError."""
    if names and markdown_file is not None:
        raise ConfigError("the page is made of all operators: leave the names out, or --markdown")
    known = {op.full_name: op for op in operators()}
    chosen = matching(list(known), names)
    measured = []
    with bar() as progress:
        task = progress.add_task("", total=len(chosen))
        for name in chosen:
            progress.update(task, description=name)
            measured.append(measure(known[name]))
            progress.advance(task)
    table = Table(
        encml=encml_version(),
        torch=torch.__version__,
        date=date.today().isoformat(),
        fraction_bits=F,
        operators=tuple(measured),
    )
    warn_about_problems(table)
    present(table, list(measured), json_file, markdown_file)
