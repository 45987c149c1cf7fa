"""The commands ``keys init`` and ``keys add-client``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import typer

from encml.errors import ConfigError
from encml.net.certificates import add_client, make_cluster_keys

MESH_PORT, API_PORT = 9100, 9200


def init(folder: Path, hosts: str, clients: str, owner: str, days: int, cluster: Path | None, overwrite: bool) -> None:
    """Make a cluster's keys and, with ``cluster``, its file. Raises ConfigError."""
    names = _listed(hosts)
    if cluster is not None and cluster.exists() and not overwrite:
        raise ConfigError(f"{cluster}: there is such a file already; choose another name, or --overwrite")
    make_cluster_keys(folder, names, _listed(clients), owner, days, overwrite)
    typer.echo(f"Keys of a new cluster: {folder}")
    typer.echo("Give each party ca.pem, party-*.seal.pub and its own party-<i>.* files, and nobody else's .key files;")
    typer.echo("ca.key makes further clients: keep it away from the parties.")
    if cluster is not None:
        _write(cluster, _cluster_yaml(names, folder, cluster))
        typer.echo(f"Cluster file: {cluster}")


def add(folder: Path, name: str, days: int) -> None:
    """Make keys for one more client. Raises ConfigError."""
    add_client(folder, name, days)
    typer.echo(f"Keys of {name}: {folder / name}.pem and {folder / name}.key")


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


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
