"""An owner's table: a CSV file with a header, numbers in columns, and perhaps a label and an id in every row.

Reading is strict: what is not a finite number is refused with its line and column, never guessed at, dropped or filled.
Messages name the form of what was found (digits as 0, letters as a), not the contents: a log may be read by others.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from encml.errors import DataError

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[0-9]{1,18}")
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "inf", "-inf", "?", "-", "."})
_FORM_LENGTH = 20


@dataclass(frozen=True, slots=True, repr=False)
class Table:
    """What an owner's file holds, in the order of its rows.

    features: (n, d). labels: int64 (n,), None if none were asked for. ids: n strings, or None. names: the d columns'.
    """

    features: Tensor
    labels: Tensor | None
    ids: tuple[str, ...] | None
    names: tuple[str, ...]

    def __repr__(self) -> str:
        more = [name for name, found in (("labels", self.labels), ("ids", self.ids)) if found is not None]
        return f"Table({len(self)} rows, {len(self.names)} columns{''.join(f', {name}' for name in more)})"

    def __len__(self) -> int:
        return len(self.features)


def read_table(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    labels: str | None = None,
    ids: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Table:
    """Read a CSV file: UTF-8, commas, one line of column names, then one line a row.

    columns: the names of the feature columns, in the order wanted; default: all but those of labels and ids, as they
        come.
    labels: the name of the column of class indices, whole numbers from 0; default: there is none.
    ids: the name of the column that says whom a row is about, any text but none, each only once; default: none.
    dtype: of the features, a floating-point one.

    Raises DataError, which names the file, and the line and column, for a missing or unreadable file, names that are
    missing, empty or there twice, rows of another length, and whatever is no finite number of ``dtype``.
    """
    path = Path(path)
    lines = _lines(path)
    names = [name.strip() for name in next(lines, (1, []))[1]]
    _check_header(path, names)
    others = [name for name in (labels, ids) if name is not None]
    wanted = [name for name in names if name not in others] if columns is None else list(columns)
    asked = [*wanted, *others]
    for name in asked:
        if name not in names:
            raise DataError(f"{path}: there is no column {name!r}; its columns are {', '.join(map(repr, names))}")
        if asked.count(name) > 1:
            raise DataError(f"{path}: the column {name!r} is asked for twice")
    place = {name: names.index(name) for name in asked}
    values: list[list[float]] = []
    classes: list[int] = []
    found: dict[str, int] = {}
    for line, row in lines:
        if len(row) != len(names):
            raise DataError(f"{path}, line {line}: {len(row)} fields, the header has {len(names)}")
        values.append([_number(path, line, name, row[place[name]].strip(), dtype) for name in wanted])
        if labels is not None:
            classes.append(_class(path, line, labels, row[place[labels]].strip()))
        if ids is not None:
            _note_id(path, line, ids, row[place[ids]].strip(), found)
    if not values:
        raise DataError(f"{path}: a header and no rows")
    return Table(
        torch.from_numpy(np.array(values, dtype=np.float64).reshape(len(values), len(wanted))).to(dtype),
        torch.tensor(classes) if labels is not None else None,
        tuple(found) if ids is not None else None,
        tuple(wanted),
    )


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines with their numbers; an empty one is only allowed at the end."""
    empty = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if not row:
                    empty = empty or reader.line_num
                elif empty:
                    raise DataError(f"{path}, line {empty}: an empty line in the middle of the file")
                else:
                    yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: no CSV ({error})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: text in another encoding than UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _check_header(path: Path, names: Sequence[str]) -> None:
    if not names:
        raise DataError(f"{path}: the file is empty; expected a line of column names")
    if any(_NUMBER.fullmatch(name) for name in names):
        raise DataError(f"{path}, line 1: found numbers; expected the names of the columns")
    if "" in names:
        raise DataError(f"{path}, line 1: column {names.index('') + 1} has no name")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line 1: there are two columns {twice[0]!r}")


def _number(path: Path, line: int, column: str, text: str, dtype: torch.dtype) -> float:
    if not _NUMBER.fullmatch(text):
        raise DataError(
            f"{path}, line {line}, column {column!r}: found {_form(text)}, expected a number such as -1.5 or 2e-3; "
            "rows with missing values are to be completed or left out beforehand"
        )
    number = float(text)
    if abs(number) > torch.finfo(dtype).max or math.isinf(number):
        raise DataError(f"{path}, line {line}, column {column!r}: found a number beyond {dtype}")
    return number


def _class(path: Path, line: int, column: str, text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise DataError(
            f"{path}, line {line}, column {column!r}: found {_form(text)}, expected a class: a whole number from 0"
        )
    return int(text)


def _note_id(path: Path, line: int, column: str, name: str, ids: dict[str, int]) -> None:
    if not name:
        raise DataError(f"{path}, line {line}, column {column!r}: found nothing, expected an id")
    if name in ids:
        raise DataError(f"{path}, line {line}, column {column!r}: the same id as in line {ids[name]}")
    ids[name] = line


def _form(text: str) -> str:
    """What a field looks like, without what it says."""
    if text.lower() in _MISSING:
        return repr(text) if text else "nothing"
    form = re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "0", text))
    return f"text like {form if len(form) <= _FORM_LENGTH else form[:_FORM_LENGTH] + '...'!r}"
