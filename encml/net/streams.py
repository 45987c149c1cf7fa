"""Frames in a byte stream, without blocking: one reader and one writer for each peer.

They know nothing of sockets: ``receive`` fills a buffer and ``send`` takes from one, both return how many bytes went,
or None where they would block; the place in the stream is then kept, so that the caller can wait and go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from encml.errors import PartyError, ProtocolError
from encml.net.frames import HEADER_BYTES, Header, Kind, data_header, operation_digest, waiting
from encml.net.transport import PARTIES

Receive = Callable[[memoryview], int | None]
Send = Callable[[bytes | memoryview], int | None]

RECORD_BYTES = 16384
"""The most that one TLS record holds; messages that fit are sent in one call."""
CHUNK_BYTES = 4 * RECORD_BYTES


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor of any shape, as bytes; shared, not copied."""
    return tensor.numpy().reshape(-1).view(np.uint8).data


class FrameWriter:
    """Writes one peer's frames, in order. ``put`` queues a tensor; ``advance`` writes what the socket takes."""

    def __init__(self, session: bytes) -> None:
        self._session = session
        self._sequence = 0
        self._queue: deque[bytes | memoryview] = deque()
        self._begun: bytes | memoryview = b""
        """What ``send`` has been called with and has not taken yet."""

    @property
    def done(self) -> bool:
        """Whether everything queued has been handed to the socket."""
        return not (self._queue or self._begun)

    def put(self, operation: str, shape: tuple[int, ...], dtype: torch.dtype, payload: memoryview) -> None:
        """Queue one tensor. Its memory must not change until ``done``."""
        digest = operation_digest(operation, shape, dtype)
        header = data_header(self._session, self._sequence, digest, len(payload))
        self._sequence += 1
        room = RECORD_BYTES - HEADER_BYTES
        self._queue.append(header + payload[:room])
        if len(payload) > room:
            self._queue.append(payload[room:])

    def put_waiting(self, rank: int) -> None:
        """Queue the notice that this party cannot go on without party ``rank``."""
        self._queue.append(waiting(self._session, rank))

    def advance(self, send: Send, limit: int) -> int:
        """Call ``send`` until it would block, the queue is empty or ``limit`` bytes went; returns the bytes."""
        total = 0
        while total < limit and (self._begun or self._queue):
            # TLS wants a write that would block to be tried again with the same bytes, whatever was queued since.
            data = self._begun = self._begun or self._take()
            count = send(data)
            if count is None:
                break
            total += count
            # What is empty is let go of: a view would keep a whole tensor in memory.
            self._begun = data[count:] or b""
        return total

    def _take(self) -> bytes | memoryview:
        """What to write next: part of a long piece, or as many short ones as one record holds."""
        data = self._queue.popleft()
        if len(data) > CHUNK_BYTES:
            self._queue.appendleft(data[CHUNK_BYTES:])
            return data[:CHUNK_BYTES]
        while self._queue and len(data) + len(self._queue[0]) <= RECORD_BYTES:
            data = b"".join((data, self._queue.popleft()))
        return data


@dataclass(slots=True, eq=False)
class Expected:
    """One tensor that a peer is to send: its operation, what it looks like, and the memory it goes to."""

    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    view: memoryview
    """The payload's bytes, writable."""


class FrameReader:
    """Reads one peer's frames, in order, into memory that the caller prepared.

    ``expect`` queues tensors; ``advance`` reads what is there. Nothing is allocated on a peer's word. ``rank`` is this
    party's own; ``addresses`` are the others', for errors.
    """

    def __init__(self, peer: int, rank: int, addresses: Mapping[int, str], session: bytes) -> None:
        self.waits_for: int | None = None
        """The rank without which, as the peer said last, it cannot go on; None once it has sent data again."""
        self._peer = peer
        self._rank = rank
        self._addresses = addresses
        self._name = f"party {peer} ({addresses[peer]})"
        self._session = session
        self._sequence = 0
        self._queue: deque[Expected] = deque()
        self._header = bytearray(HEADER_BYTES)
        self._target = memoryview(self._header)
        self._filled = 0
        self._in_payload = False

    @property
    def done(self) -> bool:
        """Whether all that was expected has come."""
        return not self._queue

    def expect(self, tensor: Expected) -> None:
        """Queue a tensor; the peer must send exactly this next."""
        self._queue.append(tensor)

    def advance(self, receive: Receive, limit: int) -> int:
        """Call ``receive`` until it would block, all expected is there or ``limit`` bytes came; returns the bytes.

        Also ends after a notice, which is no reason to wait longer for the peer than before.
        Raises PartyError where the peer has closed the connection (``receive`` returns 0), ProtocolError where it
        sent anything unexpected.
        """
        total = 0
        while self._queue and total < limit:
            target, filled = self._target, self._filled
            while filled < len(target) and total < limit:
                count = receive(target[filled:])
                if not count:
                    self._filled = filled
                    if count is None:
                        return total
                    raise self.gone()
                filled += count
                total += count
            self._filled = filled
            if filled == len(target):
                self._complete()
                if self.waits_for is not None:
                    break
        return total

    def last_words(self, receive: Receive) -> None:
        """The peer is lost and nothing is expected of it: read whom it blamed, if it said so."""
        while not self._in_payload:
            count = receive(self._target[self._filled :])
            if not count:
                return
            self._filled += count
            if self._filled == len(self._target):
                header = Header.unpack(self._header, self._name)
                if header.session != self._session or header.kind != Kind.WAITING:
                    return
                self._note_waiting(header.length)
                self._next(memoryview(self._header), in_payload=False)

    def gone(self) -> PartyError:
        """The error for a peer that closed its connection: it names the party that the peer blamed, if any."""
        if self.waits_for is None:
            message = f"{self._name} closed the connection: it has stopped, or an error ended its session"
            return PartyError(message, rank=self._peer, address=self._addresses[self._peer])
        if self.waits_for == self._rank:
            message = f"{self._name} closed the connection because it could not go on without this party"
            return PartyError(message, rank=self._peer, address=self._addresses[self._peer])
        address = self._addresses[self.waits_for]
        message = f"party {self.waits_for} ({address}) has failed: {self._name} closed the connection because of it"
        return PartyError(message, rank=self.waits_for, address=address)

    def _complete(self) -> None:
        if self._in_payload:
            self._check_bool(self._queue[0])
            self._sequence += 1
            self._queue.popleft()
            self._next(memoryview(self._header), in_payload=False)
            return
        expected = self._queue[0]
        digest = operation_digest(expected.operation, expected.shape, expected.dtype)
        if self._header != data_header(self._session, self._sequence, digest, len(expected.view)):
            self._diagnose(Header.unpack(self._header, self._name), expected, digest)
            self._next(memoryview(self._header), in_payload=False)
            return
        self.waits_for = None
        self._next(expected.view, in_payload=True)

    def _next(self, target: memoryview, *, in_payload: bool) -> None:
        self._target, self._filled, self._in_payload = target, 0, in_payload

    def _note_waiting(self, rank: int) -> None:
        if rank >= PARTIES or rank == self._peer:
            raise ProtocolError(f"{self._name} says that it waits for party {rank}, which cannot be")
        self.waits_for = rank

    def _diagnose(self, header: Header, expected: Expected, digest: bytes) -> None:
        """Take a notice; otherwise say which field is not as expected."""
        what = f"{expected.operation!r}, {expected.shape}, {expected.dtype}"
        if header.session != self._session:
            found, ours = header.session.hex()[:8], self._session.hex()[:8]
            message = f"{self._name} sent a frame of session {found}, expected {ours}: a party has restarted"
            raise ProtocolError(f"{message}; connect again")
        if header.kind == Kind.WAITING:
            self._note_waiting(header.length)
            return
        if header.kind != Kind.DATA:
            raise ProtocolError(f"{self._name} sent a frame of kind {header.kind.name}, expected data for {what}")
        if header.sequence != self._sequence:
            found = f"sequence number {header.sequence}, expected {self._sequence}"
            raise ProtocolError(f"{self._name}: {found} (for {what}): a message was lost, repeated or left out")
        if header.digest != digest:
            raise ProtocolError(
                f"{self._name} is at another operation, shape or dtype than this party, which expects {what}: run the "
                f"same program, model and configuration at every party"
            )
        raise ProtocolError(f"{self._name} names {header.length} bytes, expected {len(expected.view)} for {what}")

    def _check_bool(self, tensor: Expected) -> None:
        if tensor.dtype != torch.bool or not tensor.view:
            return
        if int(torch.frombuffer(tensor.view, dtype=torch.uint8).max()) > 1:
            raise ProtocolError(f"{self._name} sent a bool that is neither 0 nor 1, for {tensor.operation!r}")
