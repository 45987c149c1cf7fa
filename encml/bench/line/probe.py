"""What the line is like, measured by plain TCP between parties 0 and 1: a byte's round trip, and bytes a second."""

from __future__ import annotations

import socket
import statistics
import struct
import time
from contextlib import closing

from encml.bench.line.namespaces import address

_PORT = 9300
_PINGS = 9
_SECONDS = 60.0
_RETRY_SECONDS = 0.05
_CHUNK = bytes(2**16)
_RATE = struct.Struct("<d")
_UNLIMITED_BYTES = 2**26
_LIMITED_SECONDS = 2.0


def answer() -> None:
    """Party 0: send every byte back; then take all that comes and say how fast its second half came."""
    with socket.create_server((address(0), _PORT)) as listener:
        listener.settimeout(_SECONDS)
        peer, _ = listener.accept()
    with closing(peer):
        _prepare(peer)
        for _ in range(_PINGS):
            peer.sendall(peer.recv(1))
        arrived = [(0, time.perf_counter())]
        while received := peer.recv(2**20):
            arrived.append((arrived[-1][0] + len(received), time.perf_counter()))
        total = arrived[-1][0]
        half = next(entry for entry in arrived if 2 * entry[0] >= total)
        peer.sendall(_RATE.pack((total - half[0]) / max(arrived[-1][1] - half[1], 1e-9)))


def ask(rate: float | None) -> tuple[float, float]:
    """Party 1: (median round trip in seconds, bytes a second). ``rate``: what the line should give."""
    with closing(_dial()) as peer:
        _prepare(peer)
        times = []
        for _ in range(_PINGS):
            start = time.perf_counter()
            peer.sendall(b"\0")
            peer.recv(1)
            times.append(time.perf_counter() - start)
        size = _UNLIMITED_BYTES if rate is None else int(_LIMITED_SECONDS * rate)
        for _ in range(0, size, len(_CHUNK)):
            peer.sendall(_CHUNK)
        peer.shutdown(socket.SHUT_WR)
        (found,) = _RATE.unpack(peer.recv(_RATE.size, socket.MSG_WAITALL))
    return statistics.median(times), found


def _dial() -> socket.socket:
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            return socket.create_connection((address(0), _PORT), timeout=_SECONDS)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)


def _prepare(peer: socket.socket) -> None:
    peer.settimeout(_SECONDS)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
