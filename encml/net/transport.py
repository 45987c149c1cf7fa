"""The one interface between protocols and the wire.

A transport moves tensors between the three computing parties. Protocol code is written once over the *party
axis*: the leading axis of a tensor of *rows* has one entry for each party that lives in this process, three in
the in-process session and one in a party's own process. Every call below is one communication round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from encml.net.ledger import Ledger

PARTIES = 3


class Message(NamedTuple):
    """One tensor from one party to another.

    ``payload`` is the tensor where ``source`` lives in this process and None elsewhere; ``shape`` and ``dtype``
    are public and known everywhere, so a receiver never trusts a length that a peer names.
    """

    source: int
    destination: int
    payload: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __repr__(self) -> str:
        return f"Message({self.source} -> {self.destination}, {self.shape}, {self.dtype})"


class Transport(ABC):
    """Moves tensors between parties; records rounds and bytes in ``ledger``."""

    local: tuple[int, ...]
    """Ranks of the parties that live in this process, ascending: (0, 1, 2), or (rank,)."""

    ledger: Ledger

    @abstractmethod
    def exchange(self, messages: Sequence[Message], operation: str) -> list[Tensor | None]:
        """Deliver all ``messages`` in one round, sends and receives overlapping.

        Returns for each message the tensor where its destination lives in this process, None elsewhere. Every
        party calls this with the same messages (payloads aside) in the same order. The returned tensors do not
        alias a sender's payload that the sender may still write to.

        Raises PartyError (gone), PartyTimeout (stalled) or ProtocolError (drifted apart), naming the peer.
        """

    @abstractmethod
    def rotate(self, rows: Tensor, step: int, operation: str) -> Tensor:
        """Every party i sends its row to party (i + step) mod 3, in one round; step is +1 or -1.

        ``rows`` is (parties here, ...); the result has the same shape, and its row for party i is what party
        (i - step) mod 3 sent. Raises as ``exchange``.
        """

    @abstractmethod
    def close(self) -> None:
        """Release sockets; idempotent. Calls after it raise PartyError."""
