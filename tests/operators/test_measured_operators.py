"""The measured table of operators: the page is made of it, it is still true, and measuring finds what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from encml import SharedTensor
from encml.cli.app import app
from encml.coverage.measure import measure
from encml.coverage.page import error_text, markdown, problems, summary
from encml.coverage.reasons import load_reasons
from encml.coverage.results import Aspect, Operator, Table, read_table, status_of, write_table
from encml.coverage.samples import LARGEST, calls, operators
from encml.errors import ConfigError, UnsupportedOperation

aten = torch.ops.aten
PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
AGAIN = [
    "__rsub__",
    "add",
    "addcdiv",
    "all",
    "atan2",
    "cat",
    "cumprod",
    "diagonal_scatter",
    "einsum",
    "exp",
    "floor",
    "index_reduce.prod",
    "linalg.cross",
    "masked_scatter",
    "matmul",
    "maximum",
    "mul",
    "mvlgamma.mvlgamma_p_3",
    "native_dropout_backward",
    "nn.functional.avg_pool2d",
    "nn.functional.conv2d",
    "nn.functional.gelu",
    "nn.functional.glu",
    "nn.functional.layer_norm",
    "nn.functional.relu",
    "nn.functional.softmin",
    "nn.functional.pad.constant",
    "prod",
    "remainder",
    "renorm",
    "scatter",
    "searchsorted",
    "select_scatter",
    "sort",
    "std",
    "sum",
    "svd",
    "tril",
    "unique",
    "view",
    "where",
]


@pytest.fixture(scope="module")
def database() -> dict[str, Any]:
    return {op.full_name: op for op in operators()}


def test_page_is_made_of_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(read_table(), load_reasons())


def test_everything_is_right_or_refused_for_a_reason() -> None:
    assert problems(read_table(), load_reasons()) == []


def test_table_is_complete(database: dict[str, Any]) -> None:
    """Of another version of PyTorch, operators may be missing or new."""
    table = read_table()
    if table.torch.split("+")[0] == torch.__version__.split("+")[0]:
        assert [o.name for o in table.operators] == sorted(database)


@pytest.mark.parametrize("name", AGAIN)
def test_what_is_supported_stays_supported(name: str, database: dict[str, Any]) -> None:
    known = next(o for o in read_table().operators if o.name == name)
    again = measure(database[name], 2)
    for before, now in ((known.value, again.value), (known.gradient, again.gradient), (known.in_place, again.in_place)):
        assert now.status not in ("wrong", "defect"), now.message
        if before.status == "yes":
            assert now.status in ("yes", "none"), now.message
        if before.status == "no":
            assert now.status in ("no", "none")


def replaced(monkeypatch: pytest.MonkeyPatch, handler: Callable[..., Any]) -> None:
    monkeypatch.setitem(SharedTensor.handlers, aten.neg.default, handler)


def test_a_wrong_value_is_found(monkeypatch: pytest.MonkeyPatch, database: dict[str, Any]) -> None:
    replaced(monkeypatch, lambda x: x * -1.01)
    found = measure(database["neg"], 4).value
    assert found.status == "wrong"
    assert "expected" in found.message


def test_a_wrong_shape_is_found(monkeypatch: pytest.MonkeyPatch, database: dict[str, Any]) -> None:
    replaced(monkeypatch, lambda x: (x * -1)[None])
    assert measure(database["neg"], 4).value.status == "wrong"


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch, database: dict[str, Any]) -> None:
    # The derivative of -x calls neg again: right on the way forward, wrong on the way back.
    right, seen = SharedTensor.handlers[aten.neg.default], []

    def second_time_wrong(x: Any) -> Any:
        seen.append(x)
        return right(x) if len(seen) % 2 else x

    replaced(monkeypatch, second_time_wrong)
    found = measure(database["neg"], 1)
    assert (found.value.status, found.gradient.status) == ("yes", "wrong")


def test_another_error_is_a_defect(monkeypatch: pytest.MonkeyPatch, database: dict[str, Any]) -> None:
    def broken(x: Any) -> Any:
        raise KeyError("oops")

    replaced(monkeypatch, broken)
    found = measure(database["neg"], 4).value
    assert (found.status, found.message) == ("defect", "KeyError: 'oops'")


def test_a_refusal_is_told(monkeypatch: pytest.MonkeyPatch, database: dict[str, Any]) -> None:
    def refusing(x: Any) -> Any:
        raise UnsupportedOperation("not today")

    replaced(monkeypatch, refusing)
    found = measure(database["neg"], 4)
    assert (found.value.status, found.value.message, found.gradient.status) == ("no", "not today", "none")


def test_costs_are_those_of_the_protocol(database: dict[str, Any]) -> None:
    value = measure(database["mul"], 12).value
    assert (value.rounds, round(value.bytes, 1)) == (3, 8.8)


def test_random_operators_are_compared_by_shape(database: dict[str, Any]) -> None:
    found = measure(database["nn.functional.dropout"], 4)
    assert found.random
    assert found.value.status == "yes"


def test_samples_are_on_the_grid(database: dict[str, Any]) -> None:
    for name in ("log", "nn.functional.linear", "cat"):
        for call in calls(database[name], 16, 5):
            for x in call.leaves():
                if isinstance(x, torch.Tensor):
                    x = x.detach()
                    assert torch.equal(x * 2**16, (x * 2**16).round())
                    assert float(x.abs().max()) <= LARGEST if x.numel() else True


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ((0, 0, 0, 0), "none"),
        ((3, 0, 0, 0), "yes"),
        ((3, 1, 0, 0), "partly"),
        ((0, 1, 0, 0), "no"),
        ((3, 1, 1, 0), "wrong"),
        ((3, 1, 1, 1), "defect"),
    ],
)
def test_status(outcomes: tuple[int, int, int, int], status: str) -> None:
    assert status_of(*outcomes) == status


def a_table() -> Table:
    right = Aspect(status="yes", right=3, ulps=0.5, relative=2.0**-13, rounds=3, bytes=8.75)
    return Table(
        encml="1",
        torch="2",
        date="2026-01-01",
        fraction_bits=16,
        operators=(
            Operator(name="mul", kind="Element-wise functions of two numbers and more", value=right),
            Operator(name="sin", kind="Element-wise functions of one number", value=Aspect(status="no", refused=2)),
            Operator(name="fft.fft", kind="Fourier transforms"),
        ),
    )


def test_tables_are_written_and_read(tmp_path: Path) -> None:
    write_table(a_table(), tmp_path / "table.json")
    assert read_table(tmp_path / "table.json") == a_table()
    (tmp_path / "broken.json").write_text("{}")
    for name in ("broken.json", "missing.json"):
        with pytest.raises(ConfigError, match="encml ops --measure"):
            read_table(tmp_path / name)


def test_summary_and_problems() -> None:
    counted = dict(summary(a_table(), load_reasons()))
    assert counted["in scope"] == 2
    assert counted["in scope and supported"] == 1
    assert counted["in scope and refused"] == 1
    assert problems(a_table(), load_reasons()) == ["sin: refused without a reason"]
    page = markdown(a_table(), load_reasons())
    assert "| `mul` | yes | - | - | 0.5 ulp, 2^-13 | 3 | 8.75 |" in page
    assert "`fft.fft`: takes or gives complex numbers" in page
    assert error_text(Aspect(status="yes", right=1)) == "exact"


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["ops", *(str(word) for word in words)], env={"COLUMNS": "160"})


def test_command_shows_what_is_packaged(tmp_path: Path) -> None:
    result = run("matmul", "nn.functional.*pool2d")
    assert result.exit_code == 0
    assert "matmul" in result.stdout
    assert "nn.functional.avg_pool2d" in result.stdout
    assert "conv2d" not in result.stdout
    assert "shapes are public" in " ".join(run("nonzero").stdout.split())
    result = run("--json", tmp_path / "table.json", "--markdown", tmp_path / "page.md")
    assert result.exit_code == 0
    assert "in scope" in result.stdout
    assert read_table(tmp_path / "table.json") == read_table()
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_command_measures_anew(tmp_path: Path) -> None:
    result = run("--measure", "trace", "--json", tmp_path / "table.json")
    assert result.exit_code == 0, result.output
    assert [o.value.status for o in read_table(tmp_path / "table.json").operators] == ["yes"]


def test_command_says_what_is_wrong(tmp_path: Path) -> None:
    for words, message in (
        (("sofmax",), "near: softmax"),
        (("softmax", "--json", tmp_path / "nowhere" / "x.json"), "there is no folder"),
        (("--measure", "trace", "--markdown", tmp_path / "x.md"), "leave the names out"),
    ):
        result = run(*words)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())


def test_the_database_leaves_the_flags_of_pytorch_as_they_are() -> None:
    assert not torch.backends.flags_frozen()
