"""What stands on the terminal while a run goes on, and after it."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from encml.cli.late import run_command
from encml.cli.terminal import BarDisplay
from encml.experiment.metrics import Round


def record(number: int, epsilon: float | None) -> Round:
    return Round(
        round=number,
        selected=4,
        accepted=4,
        failed=(),
        accuracy=0.5,
        epsilon=epsilon,
        uploaded=1,
        released=1,
        protocol_rounds=1,
        bytes_per_party=1.0,
        training_seconds=1.0,
        aggregation_seconds=0.0,
        testing_seconds=0.0,
    )


def test_bars_show_rounds_clients_accuracy_epsilon_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=140, legacy_windows=False)
    with caplog.at_level(logging.INFO, logger="encml"), BarDisplay(console) as display:
        display.phase("federated training: 3 rounds")
        display.training(1, 3)
        display.clients(2, 4)
        display.round_done(record(2, 1.231), 3, 65.0)
        display._progress.refresh()
        shown = output.getvalue()
        display.phase("private inference")
        display.images(64, 100, 64)
        display._progress.refresh()
    for expected in ("Rounds", "2/3", "Clients", "2/4", "accuracy 50.00 %", "epsilon 1.24", "65 s left"):
        assert expected in shown
    after = output.getvalue()[len(shown) :]
    assert "64/100" in after
    assert "Rounds" not in after
    assert "round 2/3: 4 clients, accuracy 50.00 %, epsilon 1.24, 65 s left" in caplog.messages


def test_a_command_leaves_logging_and_signals_as_they_were() -> None:
    logger = logging.getLogger("encml")
    before = (list(logger.handlers), logger.level, logger.propagate)
    run_command("files", "version")
    assert (list(logger.handlers), logger.level, logger.propagate) == before
