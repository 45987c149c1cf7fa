"""The scripts of experiments/ run at small size, agree with plain PyTorch, and read well where they are misused."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SCRIPTS = ("private_resnet18.py", "private_transformer.py")


@pytest.fixture(autouse=True)
def as_python_starts_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.setenv("COLUMNS", "160")


def run(monkeypatch: pytest.MonkeyPatch, script: str, *options: str) -> object:
    """Run a script as if from the command line; its exit status."""
    monkeypatch.setattr(sys, "argv", [script, *options])
    monkeypatch.delitem(sys.modules, "private_inference", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXPERIMENTS / script), run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize(
    ("script", "options", "shown"),
    [
        ("private_resnet18.py", "--size 32", ["layer1", "BatchNorm2d", "fc", "1 of 1 private answers"]),
        ("private_transformer.py", "--steps 5 --depth 2 --inputs 2", ["TransformerEncoder", "of 2 private answers"]),
        (
            "private_transformer.py",
            "--steps 5 --model gpt --length 6 --check",
            ["Embedding", "encml.check: 0 findings"],
        ),
        pytest.param("private_transformer.py", "--steps 5 --model lstm", ["LSTM"], marks=pytest.mark.slow),
        pytest.param(
            "private_resnet18.py", "--size 32 --model mobilenet_v2", ["InvertedResidual"], marks=pytest.mark.slow
        ),
        pytest.param("private_resnet18.py", "--size 32 --check", ["encml.check: 0 findings"], marks=pytest.mark.slow),
    ],
)
def test_private_inference_agrees_and_shows_its_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: str, options: str, shown: list[str]
) -> None:
    assert run(monkeypatch, script, *options.split()) == 0
    text = capsys.readouterr().out
    for part in ("within it", "Shared", "rounds", "bytes a party", "seconds", *shown):
        assert part in text, text


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_typos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: str) -> None:
    assert run(monkeypatch, script, "--help") == 0
    text = capsys.readouterr().out
    assert f"python experiments/{script}" in text
    assert "default: " in text
    assert run(monkeypatch, script, "--model", "resnet81") == 2
    assert "invalid choice: 'resnet81' (choose from" in capsys.readouterr().err
    assert run(
        monkeypatch, script, "--fraction-bits", "50", *(("--steps", "1") if "transformer" in script else ())
    ) == ("ConfigError: fraction_bits: found 50, allowed 4 to 24")


def test_numbers_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (("--size", "16"), ("--images", "0"), ("--images", "many")):
        assert run(monkeypatch, "private_resnet18.py", *options) == 2
        assert f"{options[0]}: found {options[1]}, expected a whole number from" in capsys.readouterr().err


def test_an_interrupted_script_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("encml.data.mnist.load_subset", interrupted)
    assert run(monkeypatch, "private_resnet18.py") == 130
    assert capsys.readouterr().out.strip() == "Interrupted"


@pytest.mark.parametrize("script", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.name)
def test_the_first_line_says_what_it_shows(script: Path) -> None:
    first = script.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith('"""')
    assert len(first) > 50
