"""What every transport checks before it moves anything."""

from __future__ import annotations

from torch import Tensor

from encml.errors import ProtocolError
from encml.net.transport import PARTIES, Message


def check_message(message: Message, operation: str) -> None:
    """Raise ProtocolError unless the ranks exist and differ and the payload, if here, is what was announced."""
    if not (0 <= message.source < PARTIES and 0 <= message.destination < PARTIES):
        raise ProtocolError(f"{operation}: {message!r} names a party outside 0..{PARTIES - 1}")
    if message.source == message.destination:
        raise ProtocolError(f"{operation}: {message!r} is a party's message to itself")
    payload = message.payload
    if payload is not None and (payload.dtype != message.dtype or payload.shape != message.shape):
        raise ProtocolError(f"{operation}: {message!r} carries a {tuple(payload.shape)} {payload.dtype} payload")


def check_rotation(rows: Tensor, step: int, local: tuple[int, ...]) -> None:
    """Raise ProtocolError unless ``rows`` has one row for each local party and ``step`` is +1 or -1."""
    if step not in (1, -1):
        raise ProtocolError(f"rotate by {step}: the step is +1 or -1")
    if rows.ndim == 0 or rows.shape[0] != len(local):
        raise ProtocolError(f"rotate {tuple(rows.shape)}: expected ({len(local)}, ...), one row a party here")
