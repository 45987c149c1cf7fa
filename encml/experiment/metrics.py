"""metrics.json: every figure of a run, typed, as it is written, reported and read back."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encml.errors import ConfigError
from encml.experiment.folder import METRICS, read_config
from encml.net.ledger import Cost

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole, 0 to 1."""

_PACKAGES = ("torch", "opacus", "numpy", "cryptography")


class Record(BaseModel):
    """A part of metrics.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class OperationCost(Record):
    """What one protocol operation cost in all: bytes of payload that a party sent, on average."""

    operation: str
    calls: int
    rounds: int
    bytes_per_party: float
    seconds: float


class Data(Record):
    """The data used and its split."""

    source: str
    train_images: int
    test_images: int
    clients: int


class Failure(Record):
    """A client that was left out of a round, and why."""

    client: str
    reason: str


class Round(Record):
    """One round of federated training.

    ``epsilon`` is what all rounds so far spent, None without privacy. ``uploaded`` and ``released`` are bytes from all
    clients to the parties, and from the parties to the server; ``protocol_rounds`` and ``bytes_per_party`` are what the
    parties told each other.
    """

    round: int
    selected: int
    accepted: int
    failed: tuple[Failure, ...]
    accuracy: Share
    epsilon: float | None
    uploaded: int
    released: int
    protocol_rounds: int
    bytes_per_party: float
    training_seconds: float
    aggregation_seconds: float
    testing_seconds: float

    @property
    def seconds(self) -> float:
        """Time of the whole round."""
        return self.training_seconds + self.aggregation_seconds + self.testing_seconds


class Privacy(Record):
    """What bounds the information in what was opened, and the sentence that says so."""

    unit: Literal["client", "example", "none"]
    epsilon: float | None
    delta: float | None
    noise_multiplier: float | None
    sentence: str


class Batch(Record):
    """Private inference at one batch size; rounds and bytes are those of one request."""

    batch_size: int
    requests: int
    ms_per_image: float
    rounds: int
    bytes_per_party: float


class Inference(Record):
    """Private inference on test images, compared with the same model in plain PyTorch."""

    transport: Literal["tls", "in_process"]
    images: int
    agreeing: int
    accuracy: Share
    plain_accuracy: Share
    batches: tuple[Batch, ...]
    costs: tuple[OperationCost, ...]

    @property
    def agreement(self) -> float:
        """Share of the images whose private class is the plaintext class."""
        return self.agreeing / self.images


class Environment(Record):
    """Where the run took place."""

    encml: str
    python: str
    packages: dict[str, str]
    system: str
    cores: int


class Metrics(Record):
    """A finished run."""

    schema_version: Literal[1] = 1
    experiment: str
    started: datetime
    finished: datetime
    resumed: tuple[int, ...]
    """The rounds after which the run was interrupted and taken up again."""
    seconds: dict[str, float]
    """Time by phase; of resumed runs, the time of work that counted."""
    data: Data
    rounds: tuple[Round, ...]
    accuracy: Share
    """Of the final model on the test images, in plain PyTorch."""
    privacy: Privacy
    aggregation: tuple[OperationCost, ...]
    """The protocol's costs in the training."""
    inference: Inference | None
    environment: Environment


M = TypeVar("M", bound=Record)


def read_metrics(path: Path, kind: type[M]) -> M:
    """The figures of the finished run in ``path``.

    Raises ConfigError where that is no run's folder, the run is not finished, or the file is damaged.
    """
    read_config(path)
    try:
        return kind.model_validate_json((path / METRICS).read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: this run is not finished (no {METRICS}); go on with: encml run --resume {path}"
        ) from None
    except (OSError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"{path / METRICS}: damaged, or of another version of encml ({first})") from None


def operation_costs(costs: Mapping[str, Cost]) -> tuple[OperationCost, ...]:
    """A ledger's costs by operation, the most bytes first; without those that cost nothing."""
    records = [
        OperationCost(
            operation=name,
            calls=cost.calls,
            rounds=cost.rounds,
            bytes_per_party=cost.bytes_per_party,
            seconds=cost.seconds,
        )
        for name, cost in costs.items()
        if cost.calls or cost.rounds
    ]
    return tuple(sorted(records, key=lambda record: -record.bytes_per_party))


def encml_version() -> str:
    """The installed version of encml, or that it is used without being installed."""
    try:
        return version("encml")
    except PackageNotFoundError:
        return "(not installed)"


def environment(encml: str) -> Environment:
    """This machine and the versions that matter for the figures."""
    return Environment(
        encml=encml,
        python=platform.python_version(),
        packages={name: version(name) for name in _PACKAGES},
        system=f"{platform.system()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
