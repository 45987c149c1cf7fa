"""What ``encml.check`` found, and how close to its limits the rest was."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from encml.inspect.places import Place

_WIDTH = 120
_NAME_WIDTH = 32


@dataclass(frozen=True, slots=True)
class Finding:
    """One operation that left its range or exceeded its error bound.

    Values found are in it: they are secrets, of a session that protects nothing.
    """

    kind: Literal["overflow", "error"]
    place: str
    """The module's qualified name and class, "backward of ..." in backward; "the program" outside."""
    module: str | None
    """The module's qualified name, "" for the whole model, None outside of it."""
    backward: bool
    operation: str
    detail: str
    """What was found, what was allowed, and what to do."""
    line: str
    """Where the operation was called from: file, line and text."""

    def __str__(self) -> str:
        return f"{self.kind} in {self.place}, operation {self.operation}: {self.detail} Called at {self.line}"


@dataclass(slots=True)
class ModuleRecord:
    """The extremes of what one module computed, in forward or in backward."""

    operations: int = 0
    largest: float = 0.0
    """The largest magnitude of any result."""
    headroom: float = math.inf
    """How many bits larger results could be: up to 2^(62 - 2f), or less for sums that averages are made of. Negative:
    they are too large for a product already."""
    local_error: float = 0.0
    """The largest error that one operation added by itself, in units of the last place, 2^-f."""
    local_operation: str = ""
    total_error: float = 0.0
    """The largest error of any result against float64 from the beginning of the block."""
    total_operation: str = ""


@dataclass(slots=True)
class Report:
    """Findings in the order of the computation, and the extremes by module."""

    findings: list[Finding] = field(default_factory=list)
    records: dict[Place, ModuleRecord] = field(default_factory=dict)
    unchecked: set[str] = field(default_factory=set)
    """Operations whose results could not be compared: they have no plain counterpart."""
    classes: dict[str, str] = field(default_factory=dict)
    """Qualified name of a module -> its class."""

    @property
    def first(self) -> Finding | None:
        """The first finding, which later ones may follow from; None if all is well."""
        return self.findings[0] if self.findings else None

    def name(self, place: Place) -> str:
        """A place for people: "layer1.0.conv1 (Conv2d)", "backward of fc (Linear)", "the program"."""
        if place.module is None:
            outside = ", outside of the model" if self.classes else ""
            return f"backward{outside}" if place.backward else f"the program{outside}"
        kind = self.classes[place.module]
        name = f"{place.module} ({kind})" if place.module else f"the model itself ({kind})"
        return f"backward of {name}" if place.backward else name

    def table(self) -> Table:
        """The extremes by module as a table for people.

        How large values got and how many bits they are short of their limit; the largest error that a single operation
        added, in units of the last place, and which one it was; the largest error since the beginning.
        """
        title = f"encml.check: {len(self.findings)} finding{'' if len(self.findings) == 1 else 's'}"
        table = Table(
            title=title, caption=self._caption(), caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        names = [self._row_name(place) for place in self.records]
        table.add_column("module", overflow="fold", min_width=min(_NAME_WIDTH, max(map(len, names), default=0)))
        for heading in ("largest", "bits left", "total error", "ulp added"):
            table.add_column(heading, justify="right", no_wrap=True, min_width=7)
        table.add_column("by", no_wrap=True)
        for name, record in zip(names, self.records.values(), strict=True):
            table.add_row(
                name,
                f"{record.largest:.4g}",
                "" if math.isinf(record.headroom) else f"{record.headroom:.1f}",
                f"{record.total_error:.1e}",
                f"{record.local_error:.2f}",
                record.local_operation,
            )
        return table

    @staticmethod
    def _row_name(place: Place) -> str:
        name = "(outside)" if place.module is None else place.module or "(the model itself)"
        return f"backward of {name}" if place.backward else name

    def _caption(self) -> str:
        lines = [
            "Total error: since the beginning. Ulp added: the most by a single operation, in units of the last place, "
            "and by which."
        ]
        lines += [str(finding) for finding in self.findings]
        if self.unchecked:
            lines.append(f"Not compared, for want of a plain counterpart: {', '.join(sorted(self.unchecked))}")
        return "\n".join(lines)

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=_WIDTH).print(self.table())
        return text.getvalue().rstrip()
