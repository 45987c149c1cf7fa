"""Sessions of real parties, from a cluster file: the same program at each of them, each with its own part."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
import torch

from encml import Session, share
from encml.errors import ConfigError, EncmlError, InvalidTensor
from encml.net.certificates import make_cluster_keys


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    sockets = [socket.socket() for _ in range(6)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    lines = [f"  - {{host: 127.0.0.1, mesh_port: {ports[i]}, api_port: {ports[3 + i]}}}" for i in range(3)]
    path = tmp_path / "cluster.yaml"
    path.write_text("\n".join(["parties:", *lines, "fraction_bits: 14", "timeout: 5", "connect_timeout: 20"]))
    make_cluster_keys(tmp_path / "keys", ["127.0.0.1"] * 3)
    return path


def test_three_parties_compute_together(cluster_file: Path) -> None:
    x, y = torch.randn(3, 4), torch.randn(4, 2)
    found: dict[int, torch.Tensor | EncmlError] = {}
    refused: list[int] = []

    def party(rank: int) -> None:
        try:
            with Session.from_cluster(cluster_file, rank) as session:
                assert session.fraction_bits == 14
                # Each owner knows its own value; what the others pass is not looked at.
                left = share(x if rank == 0 else torch.full_like(x, torch.nan), owner=0)
                right = share(y if rank == 2 else torch.zeros_like(y), owner=2)
                found[rank] = torch.relu(left @ right).reveal()
        except InvalidTensor:
            refused.append(rank)
        except EncmlError as error:
            found[rank] = error

    threads = [threading.Thread(target=party, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert refused == []
    for rank in range(3):
        result = found[rank]
        assert isinstance(result, torch.Tensor), result
        assert torch.equal(result, found[0])  # type: ignore[arg-type]
        assert torch.allclose(result, torch.relu(x @ y), atol=1e-3)


def test_a_wrong_rank_or_file_is_refused(cluster_file: Path) -> None:
    with pytest.raises(ConfigError, match="rank 3"):
        Session.from_cluster(cluster_file, 3)
    with pytest.raises(ConfigError, match="missing"):
        Session.from_cluster(cluster_file.with_name("missing.yaml"), 0)
