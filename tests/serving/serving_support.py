"""What the tests of serving share: small models, raw requests, waiting."""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from encml.config.cluster import ClusterConfig
from encml.net.certificates import client_context, party_hostname
from encml.serving import Cluster, Status


def network() -> nn.Sequential:
    """Six inputs, three outputs."""
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


class Long(nn.Module):
    """Takes a second or so for a few hundred examples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(12)
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(40):
            x = torch.relu(self.layer(x))
        return x


def until(what: Callable[[], bool], seconds: float = 20.0) -> float:
    """Wait until ``what`` holds; how long that took."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < seconds, "waited in vain"
        time.sleep(0.02)
    return time.monotonic() - start


def state(cluster: Cluster, rank: int) -> Status:
    """The status of one party, which must answer."""
    found = cluster.status()[rank]
    assert isinstance(found, Status), found
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and not merely a zombie that nobody has waited for."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rsplit(")", 1)[1].split()[0] != "Z"


def connect(config: ClusterConfig, rank: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A TLS connection to a party's HTTPS port."""
    party = config.parties[rank]
    plain = socket.create_connection((party.host, party.api_port), timeout=10)
    try:
        return context.wrap_socket(plain, server_hostname=party_hostname(rank))
    except BaseException:
        plain.close()
        raise


def send_raw(config: ClusterConfig, rank: int, data: bytes, name: str = "client") -> bytes:
    """Send bytes to a party and return its answer: headers, an empty line, the body."""
    with connect(config, rank, client_context(config.keys, name)) as sock:
        sock.sendall(data)
        answer = b""
        while part := sock.recv(65536):
            answer += part
            head, _, body = answer.partition(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            if length is not None and len(body) >= int(length[1]):
                break
        return answer


def http(method: str, path: str, body: bytes = b"", length: int | None = None) -> bytes:
    """An HTTP request after which the server closes the connection."""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length or len(body)}\r\n\r\n"
    return head.encode("latin-1", "replace") + body


def status_of(answer: bytes) -> int:
    """The status in an HTTP answer."""
    assert answer.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")), answer[:100]
    return int(answer[9:12])


def request_id() -> str:
    """A fresh id for a query."""
    return os.urandom(16).hex()
