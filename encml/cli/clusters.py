"""The commands about a cluster: its keys, a party, the owner's serve, stop and status, and a client's query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from encml.config import load_cluster
from encml.data import load_mnist, to_float
from encml.errors import ConfigError, DataError, EncmlError
from encml.experiment.files import write_file
from encml.experiment.folder import MODEL
from encml.experiment.text import bytes_text, seconds_text
from encml.net.certificates import add_client, make_cluster_keys
from encml.serving import Client, Cluster, load_model_shares, run_party
from encml.serving.model_store import check_model_name, party_file

MESH_PORT, API_PORT = 9100, 9200


def keys_init(
    folder: Path, hosts: str, clients: str, owner: str, days: int, cluster: Path | None, overwrite: bool
) -> None:
    """Make a cluster's keys and, with ``cluster``, its file. Raises ConfigError."""
    names = _listed(hosts)
    if cluster is not None and cluster.exists() and not overwrite:
        raise ConfigError(f"{cluster}: there is such a file already; choose another name, or --overwrite")
    make_cluster_keys(folder, names, _listed(clients), owner, days, overwrite)
    typer.echo(f"Keys of a new cluster: {folder}")
    typer.echo("Give each party ca.pem, party-*.seal.pub and its own party-<i>.* files, and nobody else's .key files;")
    typer.echo("ca.key makes further clients: keep it away from the parties.")
    if cluster is not None:
        write_file(cluster, _cluster_yaml(names, folder, cluster).encode())
        typer.echo(f"Cluster file: {cluster}")


def keys_add_client(folder: Path, name: str, days: int) -> None:
    """Make keys for one more client. Raises ConfigError."""
    add_client(folder, name, days)
    typer.echo(f"Keys of {name}: {folder / name}.pem and {folder / name}.key")


def party(config_file: Path, rank: int) -> None:
    """Be party ``rank`` until SIGTERM or Ctrl-C. Raises EncmlError."""
    run_party(load_cluster(config_file), rank)


def serve(folder: Path, config_file: Path, model: str, requests: int | None, owner: str, wait: bool) -> None:
    """Put a model's shares into the cluster and let clients ask. Raises EncmlError."""
    check_model_name(model)
    inner = folder / MODEL
    shares = inner if party_file(inner, 0).exists() else folder
    if not party_file(shares, 0).exists():
        raise ConfigError(f"{folder}: neither a run's folder nor one with {party_file(Path(), 0)} and its two siblings")
    parts = [replace(part, name=model) for part in load_model_shares(shares)]
    cluster = Cluster(config_file, owner=owner)
    try:
        cluster.wait_ready()
        cluster.upload(parts)
        cluster.serve(requests, model)
        limit = "without a limit" if requests is None else f"for {requests} requests"
        typer.echo(f"{model!r} is served {limit}.")
        if wait:
            _wait(cluster, model)
    finally:
        cluster.close()


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
    cluster = Cluster(config_file, owner=owner)
    try:
        cluster.stop(model)
    finally:
        cluster.close()
    typer.echo("No model is served any more." if model is None else f"{model!r} is not served any more.")


def status(config_file: Path, owner: str) -> None:
    """Print how each party is; raises the first party's error if one does not answer."""
    cluster = Cluster(config_file, owner=owner)
    try:
        statuses = cluster.status()
    finally:
        cluster.close()
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


def query(
    config_file: Path,
    model: str,
    client: str,
    images: str | None,
    data: Path | None,
    tensor_file: Path | None,
    scores_file: Path | None,
) -> None:
    """Classify images privately and print the classes. Raises EncmlError."""
    if (images is None) == (tensor_file is None):
        raise ConfigError("give either --images, numbers of MNIST test images, or --input, a file with a tensor")
    labels: list[int] | None = None
    if images is not None:
        numbers = _numbers(images)
        inputs, labels, source = _test_images(numbers, data)
        typer.echo(f"Test images of {source}.", err=True)
    else:
        assert tensor_file is not None  # checked above
        inputs = read_tensor(tensor_file)
        numbers = list(range(len(inputs)))
    with Client(config_file, client) as asking:
        scores = asking.query_model(inputs, model)
        cost = asking.last_cost
    _print_classes(numbers, scores, labels)
    assert cost is not None  # there has been a query
    left = "" if cost.remaining is None else f"; {cost.remaining} requests left"
    typer.echo(
        f"{cost.rounds} rounds, {bytes_text(sum(cost.sent_bytes) / 3)} sent by each party, "
        f"{seconds_text(cost.seconds)} of computing{left}",
        err=True,
    )
    if scores_file is not None:
        try:
            np.save(scores_file, scores.numpy(), allow_pickle=False)
        except OSError as error:
            raise EncmlError(f"{scores_file}: cannot be written: {error.strerror}") from None


def read_tensor(path: Path) -> Tensor:
    """The one float tensor (batch, ...) of a .npy or .safetensors file; nothing pickled. Raises DataError."""
    try:
        if path.suffix == ".npy":
            tensor = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == ".safetensors":
            found = load_file(path)
            if len(found) != 1:
                raise DataError(
                    f"{path}: expected one tensor, found {len(found)}: {', '.join(sorted(found)) or 'none'}"
                )
            (tensor,) = found.values()
        else:
            raise DataError(f"{path}: expected a file .npy or .safetensors")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, TypeError, EOFError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not tensor.is_floating_point() or tensor.ndim < 1 or not len(tensor):
        raise DataError(f"{path}: expected floats (batch, ...), found {tensor.dtype} {tuple(tensor.shape)}")
    return tensor


def _test_images(numbers: Sequence[int], root: Path | None) -> tuple[Tensor, list[int], str]:
    data = load_mnist(root)
    highest = len(data.test_labels) - 1
    if max(numbers) > highest:
        raise ConfigError(f"--images: {max(numbers)} is beyond the last test image, {highest} ({data.source})")
    return to_float(data.test_images[numbers]), data.test_labels[numbers].tolist(), data.source


def _print_classes(numbers: Sequence[int], scores: Tensor, labels: Sequence[int] | None) -> None:
    table = Table("image", *(["actual"] if labels is not None else []), "predicted")
    predicted = scores.flatten(1).argmax(1).tolist()
    for place, (number, guess) in enumerate(zip(numbers, predicted, strict=True)):
        actual = [] if labels is None else [str(labels[place])]
        table.add_row(str(number), *actual, str(guess))
    Console().print(table)


def _numbers(text: str) -> list[int]:
    items = _listed(text)
    if not items or not all(item.isascii() and item.isdigit() for item in items):
        raise ConfigError(f"--images {text!r}: expected numbers from 0 with commas between them, such as 0,1,2")
    return [int(item) for item in items]


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _cluster_yaml(hosts: Sequence[str], keys: Path, file: Path) -> str:
    """A cluster file; parties on one host get ports of their own."""
    seen: Counter[str] = Counter()
    lines = ["# The three computing parties; every party, the owner and the clients read the same file.", "parties:"]
    for host in hosts:
        place = seen[host]
        seen[host] += 1
        lines.append(f"  - {{host: {host}, mesh_port: {MESH_PORT + place}, api_port: {API_PORT + place}}}")
    folder = keys.resolve()
    base = file.resolve().parent
    where = folder.relative_to(base) if folder.is_relative_to(base) else folder
    lines += [f"keys: {where}  # relative to this file", "store: store"]
    return "\n".join(lines) + "\n"
