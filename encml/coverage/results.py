"""The measured table: what it holds, and how it is kept.

It is shipped with the package (measured.json) and says with which versions and when it was measured. Nothing here needs
PyTorch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from encml.errors import ConfigError

PACKAGED = Path(__file__).with_name("measured.json")

Status = Literal["yes", "partly", "no", "wrong", "defect", "none"]
"""yes: every call right. partly: some right, the rest refused. no: all refused. wrong: a result is off by more than
rounding explains. defect: an error that is not one of ours. none: there is nothing to measure."""


class Record(BaseModel):
    """A part of the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Aspect(Record):
    """What came of all calls of one kind (values, gradients, in place): how many, and what the first failure said.

    ulps: the worst error in units of the last place, 2^-f, where the value is below 1/8; relative: the worst as a part
    of the value where that is larger. Of the right results. rounds, bytes: the cost of the call with the most secret
    arguments and the largest result, settled; bytes a party and element (of the result; of the inputs for gradients).
    """

    status: Status = "none"
    right: int = 0
    refused: int = 0
    failed: int = 0
    ulps: float = 0.0
    relative: float = 0.0
    rounds: int = 0
    bytes: float = 0.0
    message: str = ""


class Operator(Record):
    """One operator of the database. ``random``: it draws random numbers, so that only shapes could be compared."""

    name: str
    kind: str
    random: bool = False
    value: Aspect = Aspect()
    gradient: Aspect = Aspect()
    in_place: Aspect = Aspect()

    @property
    def works(self) -> bool:
        """Whether any call on secrets gave a right result."""
        return self.value.status in ("yes", "partly")


class Table(Record):
    """All operators, and what they were measured with."""

    encml: str
    torch: str
    date: str
    fraction_bits: int
    operators: tuple[Operator, ...]


def read_table(path: Path = PACKAGED) -> Table:
    """The table in a file; by default the one that comes with the package. Raises ConfigError."""
    try:
        return Table.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: not a table of measured operators; make one with: encml ops --measure") from error


def write_table(table: Table, path: Path) -> None:
    """One line an operator, so that versions can be compared; what is at its default is left out."""
    head = table.model_dump(exclude={"operators"})
    lines = [json.dumps(o.model_dump(exclude_defaults=True), ensure_ascii=False) for o in table.operators]
    text = json.dumps(head, ensure_ascii=False)[:-1] + ', "operators": [\n' + ",\n".join(lines) + "\n]}\n"
    path.write_text(text, encoding="utf-8")


def status_of(right: int, refused: int, wrong: int, defects: int) -> Status:
    """What the numbers of calls with each outcome amount to."""
    if defects:
        return "defect"
    if wrong:
        return "wrong"
    if right:
        return "partly" if refused else "yes"
    return "no" if refused else "none"
