"""Clusters on loopback: keys made once, free ports, three parties as threads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from encml.config.cluster import ClusterConfig, PartyConfig
from encml.net.certificates import make_cluster_keys
from encml.net.tls import TlsTransport


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


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


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


class Parties:
    """Runs one function per party, each in a thread, and keeps what it returned or raised."""

    def __init__(self) -> None:
        self.opened: list[TlsTransport] = []

    def run(self, *work: Callable[[], Any]) -> list[Any]:
        """Results in order; an exception is a result."""
        results: list[Any] = [None] * len(work)

        def call(place: int) -> None:
            try:
                results[place] = work[place]()
            except BaseException as error:
                results[place] = error

        threads = [threading.Thread(target=call, args=(place,), daemon=True) for place in range(len(work))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
            assert not thread.is_alive(), "a party hangs"
        return results

    def connect(self, config: ClusterConfig) -> list[TlsTransport]:
        """Three connected transports in this process."""
        found = self.run(*(lambda rank=rank: TlsTransport.connect(config, rank) for rank in range(3)))
        for transport in found:
            if isinstance(transport, BaseException):
                raise transport
        self.opened += found
        return found


@pytest.fixture
def parties() -> Iterator[Parties]:
    """The three parties of a test; their transports are closed after it."""
    group = Parties()
    yield group
    for transport in group.opened:
        transport.close()
