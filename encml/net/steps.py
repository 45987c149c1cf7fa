"""What one non-blocking TLS connection does, as generators that a poll loop resumes."""

from __future__ import annotations

import errno
import select
import ssl
from collections.abc import Generator

Steps = Generator[int, int, None]
"""Serves one connection: yields the poll events it waits for, is sent those that came (0: look again)."""


def handshake(sock: ssl.SSLSocket) -> Steps:
    """Do the TLS handshake. Raises ssl.SSLError where it fails."""
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            yield select.POLLIN
        except ssl.SSLWantWriteError:
            yield select.POLLOUT
        else:
            return


def receive(sock: ssl.SSLSocket, size: int) -> Generator[int, int, bytes]:
    """Read exactly ``size`` bytes. Raises ConnectionResetError where the connection ends before."""
    data = b""
    while len(data) < size:
        try:
            part = sock.recv(size - len(data))
        except ssl.SSLWantReadError:
            yield select.POLLIN
            continue
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")
        data += part
    return data


def send(sock: ssl.SSLSocket, data: bytes) -> Steps:
    """Write ``data``, which is short."""
    while True:
        try:
            sock.send(data)
        except ssl.SSLWantWriteError:
            yield select.POLLOUT
        else:
            return
