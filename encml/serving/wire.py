"""What goes over HTTPS between owners, clients and parties, besides model files: bodies of known length, and JSON.

A query's body is one party's parcel of the input, as ``encml.mpc.dealing`` deals it: to party 0 two seeds of 16 bytes,
to party 1 a seed and the ring elements, to party 2 the ring elements and a seed. The answer's body is the party's
share of the output. Elements are int64, little-endian, and their number follows from the model and the batch size, so
there is nothing to parse: a body has the right length or is refused.
"""

from __future__ import annotations

import math
from typing import Annotated, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from encml import errors
from encml.config.loading import first_problem
from encml.errors import EncmlError, PartyError, ServingError
from encml.mpc.dealing import Half, Parcel
from encml.ring.prg import KEY_BYTES

RESULT_HEADER = "Encml-Result"
API = "/v1"
_ELEMENT = np.dtype("<i8")
_SEEDS = ((True, True), (True, False), (False, True))
"""Whether each half of a party's parcel is a seed."""


Message = TypeVar("Message", bound=BaseModel)


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class QueryResult(_Message):
    """What a party says about the share of the output that it returns."""

    model_id: str
    shape: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=16)]
    fraction_bits: Annotated[int, Field(ge=0, le=62)]
    rounds: int
    sent_bytes: int
    seconds: float
    remaining: int | None


class ServeRequest(_Message):
    """The owner lets clients ask: so many times, or without a limit."""

    num_requests: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class ModelStatus(_Message):
    """One model at one party. ``remaining`` requests: 0 if it is not served, None if without a limit.

    ``input_range``: the lowest and highest value that an input may have, if the model's owner declared any.
    """

    name: str
    model_id: str
    remaining: int | None
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    fraction_bits: int
    input_range: tuple[float, float] | None = None


class Problem(_Message):
    """An error as JSON: ``error`` for people, ``kind`` the name of its class, ``rank`` the party that it is about."""

    error: str
    kind: str
    rank: int | None = None

    @classmethod
    def of(cls, error: EncmlError, rank: int | None = None) -> Problem:
        """The problem that ``error`` is; ``rank`` if the error names no party."""
        named = error.rank if isinstance(error, PartyError) and error.rank is not None else rank
        return cls(error=str(error), kind=type(error).__name__, rank=named)

    def exception(self) -> EncmlError:
        """The error that a party reported, to be raised here."""
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, EncmlError)):
            return ServingError(self.error)
        if issubclass(kind, PartyError):
            return kind(self.error, rank=self.rank)
        return kind(self.error)


class Status(_Message):
    """How one party is: ``state`` is "ready", "busy" or "connecting" (then ``problem`` says why, if known)."""

    rank: int
    state: str
    problem: Problem | None
    queued: int
    models: tuple[ModelStatus, ...]


def range_text(limits: tuple[float, float] | None) -> str:
    """How a client tells the parties which range of inputs it has checked."""
    return "" if limits is None else f"{limits[0]!r},{limits[1]!r}"


def parcel_bytes(rank: int, batch: int, shape: tuple[int, ...]) -> int:
    """The length of party ``rank``'s body for a query of (batch, *shape)."""
    elements = batch * math.prod(shape) * _ELEMENT.itemsize
    return sum(KEY_BYTES if seed else elements for seed in _SEEDS[rank])


def pack_parcel(parcel: Parcel) -> bytes:
    """The body of a query."""
    return _pack(parcel.first) + _pack(parcel.second)


def unpack_parcel(body: bytes, rank: int, batch: int, shape: tuple[int, ...]) -> Tensor:
    """The party's two shares of the input, int64 (2, batch, *shape). Raises ServingError for a wrong length."""
    expected = parcel_bytes(rank, batch, shape)
    if len(body) != expected:
        raise ServingError(
            f"a query of {batch} examples {shape} has {expected:,} bytes for party {rank}, found {len(body):,}"
        )
    full = (batch, *shape)
    length = KEY_BYTES if _SEEDS[rank][0] else len(body) - KEY_BYTES
    halves = [
        part if seed else _elements(part, full)
        for part, seed in zip((body[:length], body[length:]), _SEEDS[rank], strict=True)
    ]
    return Parcel(halves[0], halves[1], full).expand()


def pack_share(share: Tensor) -> bytes:
    """The body of an answer."""
    return _pack(share)


def unpack_share(body: bytes, shape: tuple[int, ...], rank: int) -> Tensor:
    """A party's share of the output, int64 ``shape``. Raises PartyError, naming the party, for a wrong length."""
    if len(body) != math.prod(shape) * _ELEMENT.itemsize:
        raise PartyError(
            f"party {rank} answered with {len(body):,} bytes, expected a share of shape {shape}", rank=rank
        )
    return _elements(body, shape)


def read_message(kind: type[Message], text: str | bytes, what: str) -> Message:
    """Read JSON from outside. Raises ServingError that says what is wrong in ``what``."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ServingError(f"{what} is malformed: {first_problem(error)}"[:500]) from None


def _pack(half: Half) -> bytes:
    return half if isinstance(half, bytes) else half.contiguous().numpy().astype(_ELEMENT, copy=False).tobytes()


def _elements(data: bytes, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, _ELEMENT).astype(np.int64)).view(shape)
