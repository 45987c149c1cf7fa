"""Fixtures: a cluster on loopback with keys made once, and its three parties."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Parties, free_ports

from encml.config.cluster import ClusterConfig, PartyConfig
from encml.net.certificates import make_cluster_keys


@pytest.fixture(scope="session")
def cluster_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of one cluster on loopback, with a client."""
    folder = tmp_path_factory.mktemp("cluster") / "keys"
    make_cluster_keys(folder, ["127.0.0.1"] * 3)
    return folder


@pytest.fixture(scope="session")
def stranger_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of another cluster on the same hosts."""
    folder = tmp_path_factory.mktemp("stranger") / "keys"
    make_cluster_keys(folder, ["127.0.0.1"] * 3)
    return folder


@pytest.fixture
def cluster(cluster_keys: Path, tmp_path: Path) -> ClusterConfig:
    """A cluster on free ports of loopback with short time-outs."""
    ports = free_ports(6)
    parties = [PartyConfig(host="127.0.0.1", mesh_port=ports[i], api_port=ports[i + 3]) for i in range(3)]
    return ClusterConfig(
        parties=(parties[0], parties[1], parties[2]),
        keys=cluster_keys,
        store=tmp_path / "store",
        timeout=1.5,
        connect_timeout=10.0,
    )


@pytest.fixture
def parties() -> Iterator[Parties]:
    """The three parties of a test; their transports are closed after it."""
    group = Parties()
    yield group
    for transport in group.opened:
        transport.close()
