"""The scripts of experiments/ run at small size, agree with plain PyTorch, and read well where they are misused."""

from __future__ import annotations

import argparse
import builtins
import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from encml import Session

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SCRIPTS = ("private_resnet18.py", "private_transformer.py")


@pytest.fixture(autouse=True)
def as_python_starts_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.setenv("COLUMNS", "160")


def run(monkeypatch: pytest.MonkeyPatch, script: str, *options: str) -> object:
    """Run a script as if from the command line; its exit status."""
    monkeypatch.setattr(sys, "argv", [script, *options])
    for module in ("private_inference", "hospitals"):
        monkeypatch.delitem(sys.modules, module, raising=False)
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


# Three hospitals -------------------------------------------------------------------------------------------------

HOSPITALS = "breast_cancer_three_hospitals.py"


def columns(path: Path) -> Sequence[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file))


@pytest.mark.parametrize(
    "options",
    [
        "--in-process --epochs 4 --reveal-every 2 --reveal-model",
        "--in-process --epochs 4 --vertical",
        pytest.param("--epochs 4 --vertical --reveal-model", marks=pytest.mark.slow),
        pytest.param("", marks=pytest.mark.slow),
    ],
)
def test_three_hospitals_learn_what_all_data_would_teach(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: str
) -> None:
    assert run(monkeypatch, HOSPITALS, "--folder", str(tmp_path), *options.split()) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("shares of all hospitals' data", "all data in the clear", "hospital 0's data alone", "114 patients"):
        assert part in text, text
    vertical = "--vertical" in options
    assert ("hospital 1's data alone" in text) == (not vertical), "without diagnoses a hospital learns nothing alone"
    found = [columns(tmp_path / f"hospital-{rank}-training.csv") for rank in range(3)]
    assert [len(names) for names in found] == ([12, 11, 11] if vertical else [32] * 3)
    assert ["benign" in names for names in found] == ([True, False, False] if vertical else [True] * 3)
    assert ("no weight is off by more than" in text) == ("--reveal-model" in options)
    accuracy = float(text.split("shares of all hospitals' data")[1].split("%")[0].split()[1])
    assert accuracy >= 97 if not options else accuracy > 90


def test_what_three_processes_reveal_is_the_same_at_all_and_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, HOSPITALS, "--folder", str(tmp_path), "--epochs", "2", "--reveal-every", "2") == 0
    assert "loss 0." in capsys.readouterr().out
    logs = [(tmp_path / f"revealed-{rank}.jsonl").read_text() for rank in range(3)]
    told = [[json.loads(line) for line in log.splitlines()] for log in logs]
    for first, second, end in told:
        assert (set(first), set(second)) == ({"epoch", "loss"}, {"epoch", "loss"})
        assert (first["loss"], second["loss"]) == (None, told[0][1]["loss"])
        assert 0 < second["loss"] < 0.7
        assert set(end) == {"right", "weights", "rounds", "bytes", "seconds"}
        assert (end["right"], end["weights"], end["rounds"]) == (told[0][2]["right"], None, told[0][2]["rounds"])


def test_what_a_step_of_logistic_regression_costs(tmp_path: Path) -> None:
    """455 rows of 30 columns: the difference between three steps and five."""
    program = runpy.run_path(str(EXPERIMENTS / HOSPITALS))
    program["write_files"](tmp_path, vertical=False)
    told: list[dict[str, Any]] = []
    for epochs in (3, 5):
        options = argparse.Namespace(
            vertical=False, folder=tmp_path, epochs=epochs, reveal_every=100, reveal_model=False
        )
        tables = [program["read"](options, name, range(3)) for name in ("training", "held-out")]
        with Session():
            program["train_together"](*tables, options, lambda **news: told.append(news))
    short, long = (news for news in told if "right" in news)
    assert long["rounds"] - short["rounds"] <= 2 * 56
    assert long["bytes"] - short["bytes"] <= 2 * 240_000


def test_without_scikit_learn_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install scikit-learn" in str(run(monkeypatch, HOSPITALS, "--folder", str(tmp_path)))


def test_the_hospitals_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, HOSPITALS, "--help") == 0
    assert f"python experiments/{HOSPITALS} --vertical" in capsys.readouterr().out
    assert run(monkeypatch, HOSPITALS, "--rank", "1") == 2
    assert "--rank and --config go together" in capsys.readouterr().err
    assert run(monkeypatch, HOSPITALS, "--epochs", "0") == 2


@pytest.mark.slow
def test_an_interrupt_leaves_no_hospital_behind(tmp_path: Path) -> None:
    command = [sys.executable, str(EXPERIMENTS / HOSPITALS), "--folder", str(tmp_path), "--epochs", "5000"]
    script = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "revealed-0.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()
    assert len(children) == 3
    script.send_signal(signal.SIGINT)
    text, _ = script.communicate(timeout=60)
    assert script.returncode == 130
    assert "Interrupted" in text
    assert not [child for child in children if os.path.exists(f"/proc/{child}")]


@pytest.mark.parametrize("script", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.name)
def test_the_first_line_says_what_it_shows(script: Path) -> None:
    first = script.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith('"""')
    assert len(first) > 50
