"""experiments/private_training.py learns at a small budget and says what the model gives away."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "private_training.py"


@pytest.mark.usefixtures("session")
def test_the_script_trains_within_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(SCRIPT))["main"](["--epsilon", "4", "--steps", "25"])
    text = capsys.readouterr().out
    found = re.search(r"(\d+) of 113 patients right", text)
    assert found
    assert int(found[1]) > 90
    spent = re.search(r"ε = ([\d.]+)", text)
    assert spent
    assert 3.9 < float(spent[1]) <= 4.01
    assert "25 steps" in text
