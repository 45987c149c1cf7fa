"""Three parties in three threads, each with its own shares, streams and transport, joined by queues.

What a party's own process is, without the sockets: ``local`` is one rank, so a protocol step that used a share, a mask
or a message that this party lacks finds None or nothing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from encml.errors import PartyError, ProtocolError
from encml.mpc.parties import Parties
from encml.net.ledger import Ledger
from encml.net.local import check_message, check_rotation
from encml.net.transport import PARTIES, Message, Transport

WAIT = 20.0
T = TypeVar("T")
Links = dict[tuple[int, int], "queue.Queue[tuple[str, Tensor] | None]"]


class ThreadTransport(Transport):
    """One party's end. A payload for a message that another party sends is a protocol's error and raises."""

    def __init__(self, rank: int, links: Links) -> None:
        self.local = (rank,)
        self.ledger = Ledger()
        self.transcript: list[tuple[int, str, Tensor]] = []
        self._links = links

    def exchange(self, messages: Sequence[Message], operation: str) -> list[Tensor | None]:
        (rank,) = self.local
        sent = 0
        for message in messages:
            check_message(message, operation)
            if (message.payload is None) == (message.source == rank):
                raise ProtocolError(f"{operation}: party {rank} has the wrong side's payload of {message!r}")
            if message.payload is not None:
                sent += message.payload.numel() * message.payload.element_size()
                self._send(message.destination, operation, message.payload)
        self.ledger.round(operation, {rank: sent})
        return [self._receive(m, operation) if m.destination == rank else None for m in messages]

    def rotate(self, rows: Tensor, step: int, operation: str) -> Tensor:
        check_rotation(rows, step, self.local)
        (rank,) = self.local
        self.ledger.round(operation, {rank: rows.numel() * rows.element_size()})
        self._send((rank + step) % PARTIES, operation, rows)
        shape, source = tuple(rows.shape), (rank - step) % PARTIES
        return self._receive(Message(source, rank, None, shape, rows.dtype), operation)

    def close(self) -> None:
        """Wake whoever waits for this party."""
        (rank,) = self.local
        for other in range(PARTIES):
            if other != rank:
                self._links[rank, other].put(None)

    def _send(self, to: int, operation: str, payload: Tensor) -> None:
        self.transcript.append((to, operation, payload.clone()))
        self._links[self.local[0], to].put((operation, payload.clone()))

    def _receive(self, message: Message, operation: str) -> Tensor:
        got = self._links[message.source, message.destination].get(timeout=WAIT)
        if got is None:
            raise PartyError(f"party {message.source} is gone", rank=message.source)
        sent_for, payload = got
        if sent_for != operation:
            raise ProtocolError(f"parties drifted apart: {message!r} of {operation} met one of {sent_for}")
        if tuple(payload.shape) != message.shape or payload.dtype != message.dtype:
            raise ProtocolError(f"parties drifted apart: expected {message!r}, found {payload.dtype} {payload.shape}")
        return payload


def run_apart(script: Callable[[Parties], T], seed: int) -> tuple[list[T], list[ThreadTransport]]:
    """Run ``script`` as each of the three parties; their results and transports in order of rank.

    An error in any party ends all of them and is raised here: the first one that was not another party's going away.
    """
    links: Links = {(a, b): queue.Queue() for a in range(PARTIES) for b in range(PARTIES) if a != b}
    transports = [ThreadTransport(rank, links) for rank in range(PARTIES)]
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = script(Parties(transports[rank], seed))
        except BaseException as error:
            errors.append(error)
        finally:
            transports[rank].close()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(PARTIES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT)
    if errors:
        raise next((error for error in errors if not isinstance(error, PartyError)), errors[0])
    unread = [key for key, link in links.items() if any(item is not None for item in link.queue)]
    if unread:
        raise ProtocolError(f"messages that nobody read: {unread}")
    return [results[rank] for rank in range(PARTIES)], transports
