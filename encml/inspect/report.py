"""What ``encml.check`` found, and how close to its limits the rest was."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.table import Table

from encml.inspect.places import Place

_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Finding:
    """One operation that left its range or exceeded its error bound.

    Values found are in it: they are secrets, of a session that protects nothing.
    """

    kind: Literal["overflow", "error"]
    place: str
    """The module's qualified name and class, "backward of ..." in backward; "outside of any module"."""
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
    """Bits between a result and its limit, 2^(62 - 2f) or less for sums that averages are made of; negative: over."""
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
        """A place for people: "layer1.0.conv1 (Conv2d)", "backward of fc (Linear)"."""
        if place.module is None:
            return "backward, outside of any module" if place.backward else "outside of any module"
        kind = self.classes[place.module]
        name = f"{place.module} ({kind})" if place.module else f"the model itself ({kind})"
        return f"backward of {name}" if place.backward else name

    def table(self) -> Table:
        """The extremes by module as a table for people."""
        title = f"{len(self.findings)} finding{'' if len(self.findings) == 1 else 's'}"
        table = Table(title=f"encml.check: {title}", caption=self._caption(), caption_justify="left")
        table.add_column("module", overflow="fold")
        for heading in ("operations", "largest |x|", "headroom, bits", "worst of one operation, ulp", "total error"):
            table.add_column(heading, justify="right")
        for place, record in self.records.items():
            table.add_row(
                self.name(place),
                f"{record.operations:,}",
                f"{record.largest:.4g}",
                "" if math.isinf(record.headroom) else f"{record.headroom:.1f}",
                _with_operation(f"{record.local_error:.2f}", record.local_operation),
                _with_operation(f"{record.total_error:.2e}", record.total_operation),
            )
        return table

    def _caption(self) -> str:
        lines = [str(finding) for finding in self.findings]
        if self.unchecked:
            lines.append(f"Not compared, for want of a plain counterpart: {', '.join(sorted(self.unchecked))}")
        return "\n".join(lines)

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=_WIDTH).print(self.table())
        return text.getvalue().rstrip()


def _with_operation(figure: str, operation: str) -> str:
    return f"{figure} {operation}" if operation else figure
