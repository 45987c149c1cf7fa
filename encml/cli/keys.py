"""The commands ``keys init`` and ``keys add-client``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import typer

from encml.config import load_cluster
from encml.errors import ConfigError
from encml.net.certificates import add_client, make_cluster_keys

MESH_PORT, API_PORT = 9100, 9200
LOCAL = "localhost,localhost,localhost"


def init(
    folder: Path | None,
    config_file: Path | None,
    hosts: str | None,
    clients: str,
    owner: str,
    days: int,
    write_config: Path | None,
    overwrite: bool,
) -> None:
    """Make a cluster's keys: for the cluster that a file describes, or for ``hosts``. Raises ConfigError."""
    if (folder is None) == (config_file is None):
        raise ConfigError("give either a folder for the keys, or --config with the cluster file that names one")
    if config_file is not None:
        if hosts is not None or write_config is not None:
            raise ConfigError("--config takes hosts and folder from its file: leave --hosts and --write-config out")
        cluster = load_cluster(config_file)
        folder, names = cluster.keys, [party.host for party in cluster.parties]
    else:
        names = _listed(hosts or LOCAL)
    assert folder is not None  # one of the two gave it
    if write_config is not None and write_config.exists() and not overwrite:
        raise ConfigError(f"{write_config}: there is such a file already; choose another name, or --overwrite")
    make_cluster_keys(folder, names, _listed(clients), owner, days, overwrite)
    typer.echo(f"Keys of a new cluster: {folder}")
    typer.echo("Give each party ca.pem, party-*.seal.pub and its own party-<i>.* files, and nobody else's .key files;")
    typer.echo("ca.key makes further clients: keep it away from the parties.")
    if write_config is not None:
        _write(write_config, _cluster_yaml(names, folder, write_config))
        typer.echo(f"Cluster file: {write_config}")


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
