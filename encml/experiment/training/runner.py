"""A training on encrypted data as an experiment: plaintext for comparison, the parties, predictions, the report."""

from __future__ import annotations

import logging
import shutil
from datetime import UTC, datetime

from encml.config import TrainingConfig
from encml.data import load_mnist
from encml.experiment.clock import Clock
from encml.experiment.display import Display
from encml.experiment.files import write_file
from encml.experiment.folder import REPORT, RunFolder
from encml.experiment.metrics import OperationCost, environment
from encml.experiment.training.job import initial_model, steps_of
from encml.experiment.training.launch import train_by_processes, train_here
from encml.experiment.training.metrics import TrainingMetrics
from encml.experiment.training.outcome import clear, gather
from encml.experiment.training.owners import cut, owner_file, used_data, write_part
from encml.experiment.training.plaintext import train_plainly
from encml.experiment.training.predict import predict
from encml.experiment.training.report import render
from encml.experiment.training.watch import Watch

OWNERS = "owners"
"""Folder of what each owner has; only its owner's process reads a file of it."""

_log = logging.getLogger(__name__)


def run_training(folder: RunFolder, config: TrainingConfig, display: Display, version: str) -> TrainingMetrics:
    """Run, or go on with, the training in ``folder`` to its end, and return its figures.

    May be stopped at any moment, by an exception too, and gone on with from the parties' last common checkpoint by
    calling it again. Raises EncmlError.
    """
    seconds = Clock()
    with seconds.phase("Reading the data"):
        display.phase("reading the data")
        data = used_data(config.data, load_mnist(config.data.root))
        owners = folder.path / OWNERS
        owners.mkdir(mode=0o700, exist_ok=True)
        for rank, part in enumerate(cut(config.data, data)):
            write_part(owner_file(owners, rank), part)
    _log.info("data: %s", data.source)
    rows = len(data.train_labels)
    epoch, steps = steps_of(config, rows)
    plain = None
    if config.compare:
        display.phase("training in plaintext, to compare with")
        with seconds.phase("Plaintext training"):
            plain = train_plainly(config, data, lambda done, of: display.steps("Plaintext", done, of))
    display.phase("starting the parties")
    watch = Watch(display)
    train = train_by_processes if config.parties.transport == "tls" else train_here
    with seconds.phase("Training on secrets"):
        done = train(config, owners, folder, watch.hear)
    gather(folder)
    predictions = None
    if config.inference is not None:
        predictions = predict(config.inference, folder, data, display, seconds.phase)
    display.phase("writing the report")
    zero = done[0]
    metrics = TrainingMetrics(
        experiment=config.experiment,
        started=folder.started,
        finished=datetime.now(UTC),
        resumed=zero.resumed,
        seconds=seconds.seconds,
        source=data.source,
        train_images=rows,
        test_images=len(data.test_labels),
        network=config.model.kind,
        parameters=sum(p.numel() for p in initial_model(config).parameters()),
        transport=config.parties.transport,
        steps=steps,
        steps_an_epoch=epoch,
        batch_size=config.training.batch_size,
        step_seconds=watch.step_seconds,
        losses=zero.losses,
        accuracy=zero.accuracy,
        plain=plain,
        privacy=zero.privacy,
        sharing=_together([one.sharing for one in done]),
        training=_together([one.training for one in done]),
        testing=_together([one.testing for one in done]),
        predictions=predictions,
        environment=environment(version),
    )
    write_file(folder.path / REPORT, render(metrics, config, folder.path).encode())
    folder.finish(metrics.model_dump_json(indent=2).encode())
    clear(folder)
    shutil.rmtree(owners, ignore_errors=True)
    return metrics


def _together(costs: list[tuple[OperationCost, ...]]) -> tuple[OperationCost, ...]:
    """What several processes counted, each for its own parties: the bytes of all, the time of the slowest."""
    names = dict.fromkeys(cost.operation for own in costs for cost in own)
    found = {name: [cost for own in costs for cost in own if cost.operation == name] for name in names}
    return tuple(
        OperationCost(
            operation=name,
            calls=same[0].calls,
            rounds=same[0].rounds,
            bytes_per_party=sum(cost.bytes_per_party for cost in same),
            seconds=max(cost.seconds for cost in same),
        )
        for name, same in found.items()
    )
