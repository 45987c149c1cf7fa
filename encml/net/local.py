"""All three parties in one process: the same protocol code, without sockets.

For tests, teaching and dealing with plain data; it protects nothing, since one process holds every share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from encml.errors import PartyError, ProtocolError
from encml.net.checks import check_message, check_rotation
from encml.net.ledger import Ledger
from encml.net.transport import PARTIES, Message, Transport

Tap = Callable[[int, int, Tensor, str], None]
"""Sees every message: (source, destination, payload, operation). Secrecy tests read what a party receives."""


class LocalTransport(Transport):
    """Three parties in this process; every message is a copy, booked as if it had been sent.

    ``tap``, if given, is called with every message before it is delivered and must not change the payload.
    """

    local: tuple[int, ...] = (0, 1, 2)

    def __init__(self, ledger: Ledger | None = None, tap: Tap | None = None) -> None:
        self.ledger = ledger if ledger is not None else Ledger()
        self._tap = tap
        self._closed = False

    def exchange(self, messages: Sequence[Message], operation: str) -> list[Tensor | None]:
        """One round; see ``Transport.exchange``. Every payload is here, so every result is a tensor."""
        self._require_open()
        sent: dict[int, int] = {}
        results: list[Tensor | None] = []
        for message in messages:
            payload = self._checked(message, operation)
            sent[message.source] = sent.get(message.source, 0) + payload.numel() * payload.element_size()
            if self._tap is not None:
                self._tap(message.source, message.destination, payload, operation)
            results.append(payload.detach().clone(memory_format=torch.contiguous_format))
        self.ledger.round(operation, sent)
        return results

    def rotate(self, rows: Tensor, step: int, operation: str) -> Tensor:
        """One round; see ``Transport.rotate``. ``rows`` is (3, ...)."""
        self._require_open()
        check_rotation(rows, step, self.local)
        size = math.prod(rows.shape[1:]) * rows.element_size()
        if self._tap is not None:
            for source in range(PARTIES):
                self._tap(source, (source + step) % PARTIES, rows[source], operation)
        self.ledger.round(operation, dict.fromkeys(range(PARTIES), size))
        return rows.detach().roll(step, 0)

    def close(self) -> None:
        """End the session; later calls raise PartyError."""
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise PartyError("this in-process transport is closed: open a new session")

    @staticmethod
    def _checked(message: Message, operation: str) -> Tensor:
        check_message(message, operation)
        if message.payload is None:
            raise ProtocolError(f"{operation}: {message!r} has no payload, though its source is in this process")
        return message.payload
