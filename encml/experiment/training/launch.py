"""The parties of a training on this machine: in this process, or three processes that talk TLS."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from encml.config import TrainingConfig
from encml.experiment.folder import CONFIG, RunFolder, digest
from encml.experiment.training.events import EVENTS, Done, Event, Listener
from encml.experiment.training.job import TrainingJob
from encml.experiment.training.owners import owner_file, read_part
from encml.experiment.training.party import EVENTS_FILE
from encml.mpc.session import Session
from encml.net.certificates import make_cluster_keys
from encml.net.transport import PARTIES
from encml.serving.processes import LocalParties, local_config

IN_PROCESS = "in-process"
_CONNECT = 120.0
"""Seconds for three processes to load PyTorch and meet, on a busy machine too."""


def train_here(config: TrainingConfig, owners: Path, folder: RunFolder, tell: Listener) -> list[Done]:
    """Train with all parties in this process: the protocol without its privacy. What it cost all three."""
    done: list[Done] = []

    def listen(event: Event) -> None:
        if isinstance(event, Done):
            done.append(event)
        else:
            tell(event)

    threads = torch.get_num_threads()
    torch.set_num_threads(config.parties.threads)
    try:
        parts = {rank: read_part(owner_file(owners, rank)) for rank in range(PARTIES)}
        with Session(
            fraction_bits=config.parties.fraction_bits, comparison_bits=config.parties.comparison_bits
        ) as session:
            TrainingJob(config, session, parts, folder.path / IN_PROCESS, listen, digest(config)).run()
    finally:
        torch.set_num_threads(threads)
    return done


def train_by_processes(config: TrainingConfig, owners: Path, folder: RunFolder, tell: Listener) -> list[Done]:
    """Train by three processes of this machine, each of which reads its own owner's file; what it cost each.

    They end with this function, whatever ends it. Raises PartyError, with the end of its log, for one that fails.
    """
    with tempfile.TemporaryDirectory(prefix="encml-training-") as name:
        local = local_config(
            Path(name),
            threads=config.parties.threads,
            timeout=config.parties.timeout,
            connect_timeout=_CONNECT,
            fraction_bits=config.parties.fraction_bits,
        )
        cluster = local.model_copy(update={"comparison_bits": config.parties.comparison_bits})
        make_cluster_keys(cluster.keys, [party.host for party in cluster.parties], clients=(), days=30)
        arguments = ["--experiment", str(folder.path / CONFIG), "--data", str(owners), "--results", str(folder.path)]
        parties = LocalParties(cluster, "encml.experiment.training.party", arguments)
        paths = [folder.path / f"party-{rank}" / EVENTS_FILE for rank in range(PARTIES)]
        for path in paths:
            path.unlink(missing_ok=True)
        try:
            for rank in range(PARTIES):
                parties.start(rank)
            readers = [map(EVENTS.validate_json, parties.lines(path)) for path in paths]
            for event in readers[0]:
                if isinstance(event, Done):
                    return [event, *(_last(reader) for reader in readers[1:])]
                tell(event)
        finally:
            parties.stop()
    raise AssertionError("events end with the last one")


def _last(events: Iterator[Event]) -> Done:
    return next(event for event in events if isinstance(event, Done))
