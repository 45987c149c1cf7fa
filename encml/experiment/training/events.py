"""What a training tells while it goes on: nothing but what is public or was opened on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from encml.experiment.metrics import OperationCost, Privacy, Record


class Phase(Record):
    """A new phase begins."""

    kind: Literal["phase"] = "phase"
    text: str


class Step(Record):
    """A step of training is done; ``loss`` where it was revealed, of the step's batch."""

    kind: Literal["step"] = "step"
    step: int
    steps: int
    """In all."""
    seconds: float
    """Since training began or went on, so many steps in all were: ``since``."""
    since: int
    loss: float | None = None


class Accuracy(Record):
    """After ``step`` steps the model gets ``right`` of ``tests`` test rows right."""

    kind: Literal["accuracy"] = "accuracy"
    step: int
    right: int
    tests: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.right / self.tests


class Done(Record):
    """The training is done: what it cost this process's parties, from the first step on."""

    kind: Literal["done"] = "done"
    losses: tuple[tuple[int, float], ...]
    accuracy: tuple[Accuracy, ...]
    resumed: tuple[int, ...]
    sharing: tuple[OperationCost, ...]
    """Sharing data and weights, before the first step."""
    training: tuple[OperationCost, ...]
    testing: tuple[OperationCost, ...]
    privacy: Privacy


Event = Phase | Step | Accuracy | Done
Listener = Callable[[Event], None]

EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])
"""Reads a line that ``model_dump_json`` wrote."""
