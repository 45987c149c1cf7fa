"""What the transport tests share: free ports, three parties as threads, a small round."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import torch

from encml.config.cluster import ClusterConfig
from encml.net.tls import TlsTransport


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


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


def spin(transport: TlsTransport, operation: str = "spin", size: int = 4) -> torch.Tensor:
    """One small round."""
    return transport.rotate(torch.zeros(1, size, dtype=torch.int64), 1, operation)
