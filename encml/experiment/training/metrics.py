"""metrics.json of a training on encrypted data."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from encml.experiment.metrics import Batch, Environment, OperationCost, Privacy, Record
from encml.experiment.training.events import Accuracy


class Plain(Record):
    """The same training in plaintext."""

    losses: tuple[tuple[int, float], ...]
    accuracy: tuple[Accuracy, ...]
    seconds: float


class Predictions(Record):
    """Private predictions by three party processes, from shares that were never opened."""

    images: int
    right: int
    batches: tuple[Batch, ...]


class TrainingMetrics(Record):
    """A finished training on encrypted data."""

    schema_version: Literal[1] = 1
    kind: Literal["encrypted_training"] = "encrypted_training"
    experiment: str
    started: datetime
    finished: datetime
    resumed: tuple[int, ...]
    """The steps after which the run was interrupted and taken up again."""
    seconds: dict[str, float]
    """Time by phase; of resumed runs, the time of the last process."""
    source: str
    train_images: int
    test_images: int
    network: str
    parameters: int
    transport: Literal["tls", "in_process"]
    steps: int
    steps_an_epoch: int
    batch_size: int
    step_seconds: float
    """Of one step, on average, in the last process."""
    losses: tuple[tuple[int, float], ...]
    """Step and loss, where revealed."""
    accuracy: tuple[Accuracy, ...]
    plain: Plain | None
    privacy: Privacy
    sharing: tuple[OperationCost, ...]
    training: tuple[OperationCost, ...]
    testing: tuple[OperationCost, ...]
    predictions: Predictions | None
    environment: Environment

    @property
    def rounds_a_step(self) -> float:
        """Of training alone."""
        return sum(cost.rounds for cost in self.training) / self.steps

    @property
    def bytes_a_step(self) -> float:
        """Sent by a party, on average; of training alone."""
        return sum(cost.bytes_per_party for cost in self.training) / self.steps
