"""What a person sees: one console for log, progress bars and tables."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from encml.experiment.display import Display, round_text
from encml.experiment.metrics import Batch, Metrics, Round
from encml.experiment.run import AnyMetrics
from encml.experiment.text import bytes_text, milliseconds_text, seconds_text
from encml.experiment.training.metrics import TrainingMetrics
from encml.experiment.training.report import accuracy_text, predictions_text, step_text
from encml.privacy.text import delta_text, epsilon_text


class BarDisplay(Display):
    """Progress bars at the terminal's foot; used as a context manager."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _Remaining(),
            TextColumn("{task.fields[state]}"),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(self._progress)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    def phase(self, text: str) -> None:
        """See ``Display.phase``."""
        super().phase(text)
        self._remove(*self._tasks)

    def training(self, done: int, rounds: int) -> None:
        """See ``Display.training``."""
        self._bar("Rounds", done, rounds)
        self._bar("Clients", 0, 1)

    def clients(self, done: int, total: int) -> None:
        """See ``Display.clients``."""
        self._bar("Clients", done, total)

    def round_done(self, record: Round, rounds: int, seconds_left: float) -> None:
        """See ``Display.round_done``."""
        super().round_done(record, rounds, seconds_left)
        state = round_text(record, rounds).partition(": ")[2]
        self._bar("Rounds", record.round, rounds, state=state, left=seconds_left)

    def steps(self, name: str, done: int, total: int, state: str = "", seconds_left: float | None = None) -> None:
        """See ``Display.steps``."""
        self._bar(name, done, total, state=state, left=seconds_left)

    def images(self, done: int, total: int, batch_size: int) -> None:
        """See ``Display.images``."""
        self._bar("Private images", done, total, state=f"batches of {batch_size}")

    def _remove(self, *names: str) -> None:
        for name in names:
            self._progress.remove_task(self._tasks.pop(name))

    def _bar(self, name: str, done: int, total: int, state: str | None = None, left: float | None = None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, state="", left=None)
        fields: dict[str, Any] = {"left": left} | ({} if state is None else {"state": state})
        self._progress.update(self._tasks[name], completed=done, total=total, **fields)


class _Remaining(ProgressColumn):
    """The time left, where the run says it."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        return Text("" if left is None else f"{seconds_text(left)} left", style="progress.remaining")


def summary_table(metrics: AnyMetrics) -> Table:
    """The run's figures as a table of two columns."""
    table = Table(
        title=f"{metrics.experiment}: done in {seconds_text(sum(metrics.seconds.values()))}", show_header=False
    )
    table.add_column(style="bold")
    table.add_column()
    for name, text in _training_lines(metrics) if isinstance(metrics, TrainingMetrics) else _lines(metrics):
        table.add_row(name, text)
    return table


def _lines(metrics: Metrics) -> list[tuple[str, str]]:
    privacy, inference = metrics.privacy, metrics.inference
    lines = [
        ("Data", metrics.data.source),
        ("Accuracy", f"{100 * metrics.accuracy:.2f} % of {metrics.data.test_images:,} test images"),
    ]
    if privacy.epsilon is not None:
        lines.append(("Epsilon", f"{epsilon_text(privacy.epsilon)} at δ = {delta_text(privacy.delta or 0.0)}"))
    lines.append(("Protects", privacy.sentence))
    if inference is not None:
        lines.append(
            (
                "Private inference",
                f"{inference.agreeing:,} of {inference.images:,} images get the plaintext class; "
                f"accuracy {100 * inference.accuracy:.2f} %",
            )
        )
        lines += _batches(inference.batches)
    return lines


def _training_lines(metrics: TrainingMetrics) -> list[tuple[str, str]]:
    lines = [("Data", metrics.source), ("Accuracy", accuracy_text(metrics)), ("A step", step_text(metrics))]
    if metrics.privacy.epsilon is not None:
        epsilon, delta = epsilon_text(metrics.privacy.epsilon), delta_text(metrics.privacy.delta or 0.0)
        lines.append(("Epsilon", f"{epsilon} at δ = {delta}"))
    lines.append(("Protects", metrics.privacy.sentence))
    if metrics.predictions is not None:
        lines.append(("Private predictions", predictions_text(metrics.predictions)))
        lines += _batches(metrics.predictions.batches)
    return lines


def _batches(batches: Iterable[Batch]) -> list[tuple[str, str]]:
    return [
        (
            f"Batch of {batch.batch_size}",
            f"{milliseconds_text(batch.ms_per_image)} an image; {batch.rounds} rounds and "
            f"{bytes_text(batch.bytes_per_party)} a party for each request",
        )
        for batch in batches
    ]
