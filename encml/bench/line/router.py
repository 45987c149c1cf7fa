"""The router: ``python -m encml.bench.line.router --folder PATH --delay SECONDS [--rate BYTES]``.

Takes the three parties' devices over a socket in the folder, then passes packets on until its standard input ends; it
then writes one line of JSON, ``{"dropped": packets}``.

Every party has an uplink of ``rate`` bytes a second that its packets leave one after the other, by a virtual clock;
each arrives ``delay`` seconds after it has left. A packet that would wait for more than ``BUFFER_SECONDS`` before it
leaves is dropped, as at a real router whose buffer is full; TCP slows down.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from encml.bench.line.namespaces import VNET_BYTES, address

BUFFER_SECONDS = 0.1
PARTIES = 3

_PACKET_BYTES = VNET_BYTES + 2**16
_MEETING_SECONDS = 60.0
_IPV4 = 4
_DESTINATION = slice(VNET_BYTES + 16, VNET_BYTES + 20)
_LENGTHS = struct.Struct("<HH")
"""In the device's header: bytes of a segment's headers, and of its content."""
_BURST = 16
"""Packets read from one device before the others have their turn."""


class Uplink:
    """What one party has sent and has not arrived yet, in order."""

    def __init__(self, delay: float, rate: float | None) -> None:
        self._delay = delay
        self._rate = rate
        self._free_at = 0.0
        self._waiting: deque[tuple[float, bytes]] = deque()
        self.dropped = 0

    @property
    def next_arrival(self) -> float:
        """When the next packet arrives; infinite without one."""
        return self._waiting[0][0] if self._waiting else float("inf")

    def send(self, packet: bytes, now: float) -> None:
        """Take a packet of the device at time ``now``, or drop it."""
        start = max(now, self._free_at)
        if start - now > BUFFER_SECONDS:
            self.dropped += 1
            return
        if self._rate is not None:
            self._free_at = start + wire_bytes(packet) / self._rate
            start = self._free_at
        self._waiting.append((start + self._delay, packet))

    def arrived(self, now: float) -> bytes | None:
        """The next packet, if it has arrived by ``now``."""
        return self._waiting.popleft()[1] if self.next_arrival <= now else None


def wire_bytes(packet: bytes) -> int:
    """What a packet of the device takes on the wire: each of its segments has headers of its own."""
    header, segment = _LENGTHS.unpack_from(packet, 2)
    size = len(packet) - VNET_BYTES
    segments = max(1, -(-(size - header) // segment)) if segment else 1
    return int(size + (segments - 1) * header)


def main() -> int:
    """Meet the parties, then pass packets on."""
    parser = argparse.ArgumentParser(prog="python -m encml.bench.line.router", description=__doc__)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--delay", required=True, type=float, help="seconds from one party to another")
    parser.add_argument("--rate", type=float, help="bytes a second that each party can send")
    arguments = parser.parse_args()
    with suppress(OSError):  # who may not: punctual enough on a machine that is not busy
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    devices = _meet(meeting_place(arguments.folder))
    dropped = _forward(devices, [Uplink(arguments.delay, arguments.rate) for _ in devices]) if devices else 0
    sys.stdout.write(json.dumps({"dropped": dropped}) + "\n")
    sys.stdout.flush()
    return 0


def meeting_place(folder: Path) -> str:
    """The address of the router's socket: a short one, for the system allows 107 bytes and folders may have more."""
    return f"/proc/self/fd/{os.open(folder, os.O_PATH)}/router"


def _meet(path: str) -> list[int]:
    """The parties' devices, by rank; none where standard input ends first."""
    found: dict[int, int] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(PARTIES)
        while len(found) < PARTIES:
            ready, _, _ = select.select([listener, sys.stdin], [], [], _MEETING_SECONDS)
            if listener not in ready:
                return []
            guest, _ = listener.accept()
            with guest:
                guest.settimeout(_MEETING_SECONDS)
                rank, descriptors, _, _ = socket.recv_fds(guest, 1, 1)
                found[rank[0]] = descriptors[0]
                guest.sendall(b"\0")
    return [found[rank] for rank in sorted(found)]


def _forward(devices: list[int], uplinks: list[Uplink]) -> int:
    """Pass packets on until standard input ends; how many were dropped."""
    to = {socket.inet_aton(address(rank)): device for rank, device in enumerate(devices)}
    sources = dict(zip(devices, uplinks, strict=True))
    stdin = sys.stdin.fileno()
    while True:
        wait = max(0.0, min(uplink.next_arrival for uplink in uplinks) - time.monotonic())
        ready, _, _ = select.select([stdin, *devices], [], [], min(wait, _MEETING_SECONDS))
        if stdin in ready:
            return sum(uplink.dropped for uplink in uplinks)
        for device in ready:
            _read(device, sources[device], to)
        now = time.monotonic()
        for uplink in uplinks:
            while (packet := uplink.arrived(now)) is not None:
                with suppress(OSError):  # the party has ended, or its kernel has no room: the packet is lost
                    os.write(to[packet[_DESTINATION]], packet)


def _read(device: int, uplink: Uplink, to: dict[bytes, int]) -> None:
    with suppress(BlockingIOError):
        for _ in range(_BURST):
            packet = os.read(device, _PACKET_BYTES)
            # What the kernel says of itself, by IPv6 and to all, concerns nobody.
            if packet[VNET_BYTES] >> 4 == _IPV4 and packet[_DESTINATION] in to:
                uplink.send(packet, time.monotonic())


if __name__ == "__main__":
    sys.exit(main())
