"""Owners' tables: what is read, bit for bit, and what is refused, with its place and without its contents."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encml.data import read_table
from encml.errors import DataError

TEXT = "patient,radius,texture,malignant\np-7,1.5,-2,1\np-9,2e-3,+.25,0\n"
NAMES: dict[str, Any] = {"labels": "malignant", "ids": "patient"}


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_features_labels_and_ids(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, TEXT), **NAMES)
    assert torch.equal(table.features, torch.tensor([[1.5, -2.0], [0.002, 0.25]]))
    assert table.labels is not None
    assert torch.equal(table.labels, torch.tensor([1, 0]))
    assert table.labels.dtype == torch.int64
    assert table.ids == ("p-7", "p-9")
    assert table.names == ("radius", "texture")
    assert len(table) == 2
    assert repr(table) == "Table(2 rows, 2 columns, labels, ids)"


def test_columns_are_chosen_and_ordered(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, TEXT), columns=["texture", "radius"], dtype=torch.float64)
    assert torch.equal(table.features, torch.tensor([[-2.0, 1.5], [0.25, 2e-3]], dtype=torch.float64))
    assert (table.labels, table.ids) == (None, None)
    only_labels = read_table(written(tmp_path, TEXT), columns=[], labels="malignant")
    assert only_labels.features.shape == (2, 0)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + TEXT,
        TEXT.replace("\n", "\r\n"),
        TEXT.rstrip(),
        TEXT + "\n\n",
        TEXT.replace(",", " , "),
        'patient,radius,texture,malignant\n"p-7","1.5",-2,1\np-9,2e-3,0.25,0',
    ],
    ids=["byte order mark", "carriage returns", "no last newline", "empty lines at the end", "spaces", "quotes"],
)
def test_harmless_differences(tmp_path: Path, text: str) -> None:
    table = read_table(written(tmp_path, text), **NAMES)
    assert torch.equal(table.features, torch.tensor([[1.5, -2.0], [0.002, 0.25]]))
    assert table.ids == ("p-7", "p-9")


@given(st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2), min_size=1))
def test_numbers_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[float]]
) -> None:
    text = "a,b\n" + "\n".join(",".join(map(repr, row)) for row in rows)
    table = read_table(written(tmp_path_factory.mktemp("tables"), text), dtype=torch.float64)
    assert table.features.tolist() == rows


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty; expected a line of column names"),
        ("a,b\n", "a header and no rows"),
        ("1,2\n3,4\n", "line 1: found numbers; expected the names"),
        ("a,,b\n1,2,3\n", "line 1: column 2 has no name"),
        ("a,b,a\n1,2,3\n", "line 1: there are two columns 'a'"),
        ("a,b\n1,2\n3\n", "line 3: 1 fields, the header has 2"),
        ("a,b\n1,2\n3,4,5\n", "line 3: 3 fields, the header has 2"),
        ("a;b\n1;2\n", "line 2, column 'a;b': found text like '0;0', expected a number"),
        ("a,b\n1,2\n\n3,4\n", "line 3: an empty line in the middle"),
        ("a,b\n1,\n", "line 2, column 'b': found nothing, expected a number"),
        ("a,b\n1,n/a\n", "line 2, column 'b': found 'n/a'"),
        ("a,b\n1,nan\n", "line 2, column 'b': found 'nan'"),
        ("a,b\n1,-inf\n", "found '-inf'"),
        ("a,b\n1,1_000\n", "found text like '0_000'"),
        ('a,b\n1,"1,5"\n', "found text like '0,0'"),
        ("a,b\n1,0x10\n", "found text like '0a00'"),
        ("a,b\n1,٣\n", "found text like '0'"),
        ("a,b\n1,1e39\n", "line 2, column 'b': found a number beyond torch.float32"),
        ("a,b\n1,1e999\n", "found a number beyond torch.float32"),
        ('a,b\n1,"2\n', "line 2: no CSV"),
        (b"a,b\n1,\xff\n", "another encoding than UTF-8"),
    ],
)
def test_what_is_no_table_is_refused_with_its_place(tmp_path: Path, text: str | bytes, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_table(path)
    assert str(error.value).startswith(str(path))
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("2e-3,+.25,0", "2e-3,+.25,-1", "line 3, column 'malignant': found text like '-0', expected a class"),
        ("2e-3,+.25,0", "2e-3,+.25,0.0", "found text like '0.0', expected a class"),
        ("2e-3,+.25,0", "2e-3,+.25,", "found nothing, expected a class"),
        ("p-9", "p-7", "line 3, column 'patient': the same id as in line 2"),
        ("p-9", " ", "line 3, column 'patient': found nothing, expected an id"),
    ],
)
def test_labels_and_ids_are_checked(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(DataError) as error:
        read_table(written(tmp_path, TEXT.replace(old, new)), **NAMES)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"labels": "benign"}, "there is no column 'benign'; its columns are 'patient', 'radius'"),
        ({"ids": "malignant", "labels": "malignant"}, "'malignant' is asked for twice"),
        ({"columns": ["radius", "radius"]}, "'radius' is asked for twice"),
        ({"columns": ["radius", "patient"], "ids": "patient"}, "'patient' is asked for twice"),
    ],
)
def test_columns_that_are_not_there_or_asked_for_twice(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_table(written(tmp_path, TEXT), **options)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv cannot be read: No such file"):
        read_table(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path)


def test_messages_do_not_say_what_stands_in_the_file(tmp_path: Path) -> None:
    """A log may be read by others than the owner."""
    with pytest.raises(DataError) as error:
        read_table(written(tmp_path, "name,age\nJane Doe,39\n"))
    assert "text like 'aaaa aaa'" in str(error.value)
    assert "Jane" not in str(error.value)
    with pytest.raises(DataError, match=r"text like 'a{20}\.\.\.'"):
        read_table(written(tmp_path, f"name\n{'x' * 500}\n"))


def test_large_numbers_stay_finite_in_double(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "a\n1e300\n"), dtype=torch.float64)
    assert math.isfinite(float(table.features))
