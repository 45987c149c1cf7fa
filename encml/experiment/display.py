"""What a run tells whoever watches it."""

from __future__ import annotations

import logging
import time

from encml.experiment.metrics import Round
from encml.experiment.text import seconds_text
from encml.privacy.text import epsilon_text

_log = logging.getLogger(__name__)

_SECONDS = 5.0
"""So often at most the log hears of progress inside a phase."""


class Display:
    """Told how a run goes, and writes it to the log; a terminal's display shows more."""

    def __init__(self) -> None:
        self._told = 0.0

    def phase(self, text: str) -> None:
        """A new phase begins."""
        self._told = time.monotonic()
        _log.info("%s", text)

    def training(self, done: int, rounds: int) -> None:
        """Training begins, or goes on after ``done`` of ``rounds`` rounds."""

    def clients(self, done: int, total: int) -> None:
        """``done`` of a round's ``total`` clients have trained."""

    def round_done(self, record: Round, rounds: int, seconds_left: float) -> None:
        """A round ended; about ``seconds_left`` remain for the others."""
        left = f", {seconds_text(seconds_left)} left" if record.round < rounds else ""
        _log.info("%s%s", round_text(record, rounds), left)

    def steps(self, name: str, done: int, total: int, state: str = "", seconds_left: float | None = None) -> None:
        """``done`` of ``total`` steps of a training are done; ``state`` says what was revealed of it."""
        now = time.monotonic()
        if done == total or now - self._told > _SECONDS:
            self._told = now
            left = "" if seconds_left is None or done == total else f"{seconds_text(seconds_left)} left"
            _log.info("%s", ", ".join(part for part in (f"{name.lower()} {done}/{total}", state, left) if part))

    def accuracy(self, step: int, steps: int, share: float) -> None:
        """After ``step`` of ``steps`` steps this share of the test rows is right."""
        _log.info("step %d/%d: accuracy %.2f %%", step, steps, 100 * share)

    def images(self, done: int, total: int, batch_size: int) -> None:
        """``done`` of ``total`` images have been classified privately in batches of ``batch_size``."""
        now = time.monotonic()
        if done == total or now - self._told > _SECONDS:
            self._told = now
            _log.info("private inference in batches of %d: %d of %d images", batch_size, done, total)


def round_text(record: Round, rounds: int) -> str:
    """One round in a line."""
    left_out = f" ({len(record.failed)} left out)" if record.failed else ""
    spent = "" if record.epsilon is None else f", epsilon {epsilon_text(record.epsilon)}"
    return (
        f"round {record.round}/{rounds}: {record.accepted} clients{left_out}, "
        f"accuracy {100 * record.accuracy:.2f} %{spent}"
    )
