"""The commands ``train`` and ``split``: one party of a training on a host of its own, and the owners' files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import typer

from encml.cli.late import error_console
from encml.cli.terminal import BarDisplay
from encml.config import TrainingConfig, load_cluster, load_experiment
from encml.data import load_mnist
from encml.errors import ConfigError
from encml.experiment.display import Display
from encml.experiment.folder import MODEL
from encml.experiment.training.events import Done, Event
from encml.experiment.training.job import PLAIN
from encml.experiment.training.owners import cut, owner_file, used_data, write_part
from encml.experiment.training.party import run_party
from encml.experiment.training.watch import Watch

_log = logging.getLogger(__name__)


def split(config_file: Path, assignments: Sequence[str], output: Path) -> None:
    """Write what each owner has of an experiment's data into a file of its own. Raises EncmlError."""
    config = _config(config_file, assignments)
    parts = cut(config.data, used_data(config.data, load_mnist(config.data.root)))
    output.mkdir(parents=True, exist_ok=True)
    for rank, part in enumerate(parts):
        write_part(owner_file(output, rank), part)
        what = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in part.items())
        typer.echo(f"{owner_file(output, rank)}: {what or 'nothing'}")


def train(
    config_file: Path,
    assignments: Sequence[str],
    cluster: Path,
    rank: int,
    data: Path | None,
    output: Path | None,
    fresh: bool,
) -> None:
    """Train as one party of a cluster, or go on with a training that was interrupted. Raises EncmlError."""
    config = _config(config_file, assignments)
    folder = output if output is not None else config.output.folder / f"{config.experiment}-party-{rank}"
    done: list[Done] = []
    typer.echo(f"Party {rank} keeps its shares in {folder}; Ctrl-C stops it, the same command goes on.", err=True)
    if error_console.is_terminal:
        with BarDisplay(error_console) as bars:
            _train(config, cluster, rank, data, folder, bars, done, fresh)
    else:
        _train(config, cluster, rank, data, folder, Display(), done, fresh)
    (end,) = done
    if end.accuracy:
        last = end.accuracy[-1]
        typer.echo(f"Accuracy: {100 * last.share:.2f} % ({last.right:,} of {last.tests:,} test rows)")
    typer.echo(end.privacy.sentence)
    if config.reveal.model:
        typer.echo(f"The revealed model: {folder / PLAIN}")
    shares = folder / MODEL / f"party-{rank}.safetensors"
    typer.echo(f"To serve it from its shares, at every party:  encml install {shares} --config {cluster} --rank {rank}")


def _train(
    config: TrainingConfig,
    cluster: Path,
    rank: int,
    data: Path | None,
    folder: Path,
    display: Display,
    done: list[Done],
    fresh: bool,
) -> None:
    watch = Watch(display)

    def hear(event: Event) -> None:
        if isinstance(event, Done):
            done.append(event)
        watch.hear(event)

    display.phase("waiting for the other parties")
    run_party(config, load_cluster(cluster), rank, data, folder, hear, fresh=fresh)


def _config(config_file: Path, assignments: Sequence[str]) -> TrainingConfig:
    config = load_experiment(config_file, assignments)
    if not isinstance(config, TrainingConfig):
        raise ConfigError(
            f"{config_file}: kind: {config.kind} is run by: encml run {config_file}; this command takes kind: "
            "encrypted_training"
        )
    return config
