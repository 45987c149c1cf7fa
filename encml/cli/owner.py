"""The commands of a model's owner: ``serve``, ``stop`` and ``status``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from encml.errors import ConfigError, EncmlError
from encml.experiment.folder import MODEL
from encml.serving import Cluster, PartyModel, load_model_shares
from encml.serving.model_store import check_model_name, party_file


def serve(folder: Path | None, config_file: Path, model: str, requests: int | None, owner: str, wait: bool) -> None:
    """Put a model's shares into the cluster, or take what its parties have, and let clients ask. Raises EncmlError."""
    check_model_name(model)
    parts = [] if folder is None else _shares(folder, model)
    with _cluster(config_file, owner) as cluster:
        cluster.wait_ready()
        if parts:
            cluster.upload(parts)
        cluster.serve(requests, model)
        limit = "without a limit" if requests is None else f"for {requests} requests"
        typer.echo(f"{model!r} is served {limit}.")
        if wait:
            _wait(cluster, model)


def _shares(folder: Path, model: str) -> list[PartyModel]:
    inner = folder / MODEL
    shares = inner if party_file(inner, 0).exists() else folder
    if not party_file(shares, 0).exists():
        raise ConfigError(f"{folder}: neither a run's folder nor one with {party_file(Path(), 0)} and its two siblings")
    return [replace(part, name=model) for part in load_model_shares(shares)]


def _wait(cluster: Cluster, model: str) -> None:
    try:
        cluster.wait_served(model)
    except KeyboardInterrupt:
        cluster.stop(model)
        typer.echo(f"{model!r} is not served any more.", err=True)
        raise
    typer.echo(f"{model!r} has answered all of them.")


def stop(config_file: Path, model: str | None, owner: str) -> None:
    """Let nobody ask ``model``, or any model, any more. Raises EncmlError."""
    with _cluster(config_file, owner) as cluster:
        cluster.stop(model)
    typer.echo("No model is served any more." if model is None else f"{model!r} is not served any more.")


def status(config_file: Path, owner: str) -> None:
    """Print how each party is; raises the first party's error if one does not answer."""
    with _cluster(config_file, owner) as cluster:
        statuses = cluster.status()
    table = Table("party", "state", "waiting", "models")
    for rank, found in enumerate(statuses):
        if isinstance(found, EncmlError):
            table.add_row(str(rank), f"no answer: {found}", "", "")
            continue
        state = found.state if found.problem is None else f"{found.state}: {found.problem.error}"
        models = [f"{m.name} ({'no limit' if m.remaining is None else f'{m.remaining} left'})" for m in found.models]
        table.add_row(str(rank), state, str(found.queued), ", ".join(models))
    Console().print(table)
    for found in statuses:
        if isinstance(found, EncmlError):
            raise found


@contextmanager
def _cluster(config_file: Path, owner: str) -> Iterator[Cluster]:
    """A cluster whose parties run already, ready or not; its connections are closed at the end."""
    cluster = Cluster(config_file, owner=owner)
    try:
        yield cluster
    finally:
        cluster.close()
