"""The main job: federated training round by round, resumable after each, then private inference, then the report."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from encml.config import ExperimentConfig
from encml.data import FLOAT_RANGE, MnistData, load_mnist, to_float
from encml.errors import ConfigError
from encml.experiment.clock import Clock
from encml.experiment.display import Display
from encml.experiment.federation import Counter, Federation, build, used_data
from encml.experiment.files import write_file
from encml.experiment.folder import CLASSIFIED, MODEL, REPORT, RunFolder
from encml.experiment.inference import classify
from encml.experiment.metrics import (
    Data,
    Failure,
    Metrics,
    Privacy,
    Round,
    environment,
    operation_costs,
)
from encml.experiment.report import render, select_images
from encml.federated.fusion import fused
from encml.federated.runner import RoundResult
from encml.net.ledger import Cost
from encml.privacy.accounting import PrivacyStatement
from encml.serving.model_store import save_model_shares

_log = logging.getLogger(__name__)

_CHUNK = 1000
_RECENT = 5


def run_federated(folder: RunFolder, config: ExperimentConfig, display: Display, version: str) -> Metrics:
    """Run, or go on with, the experiment in ``folder`` to its end, and return its figures.

    Writes a checkpoint after every round, then the model's shares, the report, and metrics.json last. May be stopped at
    any moment, by an exception too, and gone on with by calling it again. Raises EncmlError.
    """
    seconds = Clock()
    with seconds.phase("Reading the data"):
        display.phase("reading the data")
        data = used_data(config, load_mnist(config.data.root, config.data.download))
        fingerprint = _fingerprint(data)
        test_images = to_float(data.test_images)
    _log.info("data: %s", data.source)

    counter = Counter(lambda done: display.clients(done, federation.expected_clients))
    with seconds.phase("Preparing the clients"):
        display.phase(f"preparing {config.data.clients} clients")
        federation = build(config, data, counter.add)
        history = _restore(folder, federation, fingerprint)
    if history.resumed:
        _log.info("going on after round %d of %d", len(history.rounds), config.federated.rounds)
    _train(folder, config, federation, history, counter, display, (test_images, data.test_labels), fingerprint)
    seconds.add("Clients' training", sum(r.training_seconds for r in history.rounds))
    seconds.add("Secure averaging", sum(r.aggregation_seconds for r in history.rounds))
    seconds.add("Testing the model", sum(r.testing_seconds for r in history.rounds))

    model = federation.runner.model.eval()
    with seconds.phase("Sharing the model"):
        display.phase("sharing the model")
        folder.write_model(lambda path: save_model_shares(model, test_images[:1], path, input_range=FLOAT_RANGE))
    inference = None
    if config.inference is not None:
        result = classify(
            config.inference, model, folder.path / MODEL, test_images, data.test_labels, display, seconds.phase
        )
        inference = result.record
        count = inference.images
        chosen = select_images(data.test_images[:count], data.test_labels[:count], result.predicted)
        folder.write(CLASSIFIED, chosen)
    display.phase("writing the report")
    metrics = Metrics(
        experiment=config.experiment,
        started=folder.started,
        finished=datetime.now(UTC),
        resumed=tuple(history.resumed),
        seconds=seconds.seconds,
        data=Data(
            source=data.source,
            train_images=len(data.train_labels),
            test_images=len(data.test_labels),
            clients=config.data.clients,
        ),
        rounds=tuple(history.rounds),
        accuracy=history.rounds[-1].accuracy,
        privacy=_privacy(config, federation),
        aggregation=operation_costs(history.costs),
        inference=inference,
        environment=environment(version),
    )
    write_file(folder.path / REPORT, render(metrics, folder.path).encode())
    folder.finish(metrics.model_dump_json(indent=2).encode())
    return metrics


@dataclass(slots=True)
class _History:
    """What a run remembers beside the federation's own state."""

    rounds: list[Round] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        return {
            "rounds": [r.model_dump_json() for r in self.rounds],
            "costs": {name: asdict(cost) for name, cost in self.costs.items()},
            "resumed": self.resumed,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> _History:
        return cls(
            [Round.model_validate_json(r) for r in state["rounds"]],
            {name: Cost(**values) for name, values in state["costs"].items()},
            list(state["resumed"]),
        )


def _restore(folder: RunFolder, federation: Federation, fingerprint: str) -> _History:
    """Bring ``federation`` to where the run in ``folder`` was interrupted."""
    checkpoint = folder.load_checkpoint()
    if checkpoint is None:
        return _History()
    if checkpoint["data"] != fingerprint:
        raise ConfigError(f"{folder.path}: the data have changed since this run began: start anew with --fresh")
    federation.runner.load_state_dict({"tensors": checkpoint["tensors"], "values": json.loads(checkpoint["values"])})
    history = _History.from_state(checkpoint["history"])
    history.resumed.append(len(history.rounds))
    return history


def _train(
    folder: RunFolder,
    config: ExperimentConfig,
    federation: Federation,
    history: _History,
    counter: Counter,
    display: Display,
    test: tuple[Tensor, Tensor],
    fingerprint: str,
) -> None:
    """The rounds that are left, a checkpoint after each."""
    runner, rounds = federation.runner, config.federated.rounds
    before, earlier = federation.session.ledger.costs.copy(), history.costs.copy()
    display.phase(f"federated training: {rounds} rounds")
    display.training(len(history.rounds), rounds)
    while runner.round < rounds:
        counter.reset()
        result = runner.step()
        start = time.perf_counter()
        accuracy = _accuracy(runner.model, *test)
        record = _record(result, accuracy, time.perf_counter() - start)
        history.rounds.append(record)
        history.costs = _plus(earlier, before, federation.session.ledger.costs)
        state = runner.state_dict()
        folder.save_checkpoint(
            {
                "data": fingerprint,
                "tensors": state["tensors"],
                "values": json.dumps(state["values"]),
                "history": history.state(),
            }
        )
        recent = [r.seconds for r in history.rounds[-_RECENT:]]
        display.round_done(record, rounds, (rounds - runner.round) * sum(recent) / len(recent))


def _record(result: RoundResult, accuracy: float, testing_seconds: float) -> Round:
    return Round(
        round=result.round,
        selected=len(result.sampled),
        accepted=len(result.accepted),
        failed=tuple(Failure(client=name, reason=reason) for name, reason in sorted(result.failed.items())),
        accuracy=accuracy,
        epsilon=result.epsilon,
        uploaded=result.uploaded,
        released=result.released,
        protocol_rounds=result.cost.rounds,
        bytes_per_party=result.cost.bytes_per_party,
        training_seconds=result.training_seconds,
        aggregation_seconds=result.aggregation_seconds,
        testing_seconds=testing_seconds,
    )


def _plus(earlier: Mapping[str, Cost], before: Mapping[str, Cost], now: Mapping[str, Cost]) -> dict[str, Cost]:
    """Costs of earlier processes, and what the ledger counted since ``before``."""
    names = [*earlier, *(name for name in now if name not in earlier)]
    return {name: earlier.get(name, Cost()) + now.get(name, Cost()) - before.get(name, Cost()) for name in names}


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that the model classifies as labelled, in plain PyTorch."""
    quick = fused(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        right = [
            (quick(x).argmax(1) == y).sum()
            for x, y in zip(torch.split(images, _CHUNK), torch.split(labels, _CHUNK), strict=True)
        ]
    return int(torch.stack(right).sum()) / len(labels)


def _privacy(config: ExperimentConfig, federation: Federation) -> Privacy:
    statement: PrivacyStatement = federation.runner.privacy()
    private = statement.unit != "none"
    return Privacy(
        unit=statement.unit,
        epsilon=statement.epsilon if private else None,
        delta=statement.delta if private else None,
        noise_multiplier=federation.noise_multiplier,
        sentence=str(statement),
    )


def _fingerprint(data: MnistData) -> str:
    """SHA-256 of all the data used: a run that goes on with other data would report nonsense."""
    digest = hashlib.sha256()
    for tensor in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
