"""The wire format between parties: a header of fixed size, then the tensor's bytes.

Both sides know which operation, shape and dtype come next, so nothing is decoded from what a peer names: the header
only proves that the peer is at the same place of the same program. A header that differs anywhere is refused before
its payload is read, with an error that says which field differs.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import torch

from encml.errors import ProtocolError

MAGIC = b"ENCM"
VERSION = 1
SESSION_BYTES = 16
DIGEST_BYTES = 8
_HEADER = struct.Struct(f"<4sBB2x{SESSION_BYTES}sQ{DIGEST_BYTES}sQ")
HEADER_BYTES = _HEADER.size
_NO_DIGEST = bytes(DIGEST_BYTES)


class Kind(IntEnum):
    """What a frame is.

    DATA carries a tensor. WAITING has no payload; its ``length`` is the rank without which the sender cannot go on,
    so that a stalled or dead party is named right by a peer that only waits for someone who waits for it. AGREED has
    no payload and ends the set-up of a connection.
    """

    DATA = 0
    WAITING = 1
    AGREED = 2


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a frame's header; ``length`` counts payload bytes (but see ``Kind.WAITING``)."""

    kind: Kind
    session: bytes
    sequence: int
    digest: bytes
    length: int

    def pack(self) -> bytes:
        """The header's ``HEADER_BYTES`` bytes."""
        return _HEADER.pack(MAGIC, VERSION, self.kind, self.session, self.sequence, self.digest, self.length)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, peer: str) -> Header:
        """Read ``HEADER_BYTES`` bytes from ``peer``. Raises ProtocolError for anything that ``pack`` never makes."""
        if len(data) != HEADER_BYTES:
            raise ProtocolError(f"{peer} sent a header of {len(data)} bytes, expected {HEADER_BYTES}")
        if data[6:8] != b"\0\0":
            raise ProtocolError(f"{peer} sent a header whose reserved bytes are not zero")
        magic, version, kind, session, sequence, digest, length = _HEADER.unpack(data)
        if magic != MAGIC:
            raise ProtocolError(f"{peer} sent something that is no frame of encml (it does not start with ENCM)")
        if version != VERSION:
            raise ProtocolError(f"{peer} speaks version {version} of the wire format, expected {VERSION}")
        if kind > max(Kind):
            raise ProtocolError(f"{peer} sent a frame of unknown kind {kind}")
        if kind != Kind.DATA and (digest != _NO_DIGEST or sequence != 0):
            raise ProtocolError(f"{peer} sent a {Kind(kind).name} frame with a digest or a sequence number")
        return cls(Kind(kind), session, sequence, digest, length)


def data_header(session: bytes, sequence: int, digest: bytes, length: int) -> bytes:
    """The header of a DATA frame: what a writer sends, and the only bytes that a reader accepts in its place."""
    return _HEADER.pack(MAGIC, VERSION, Kind.DATA, session, sequence, digest, length)


def waiting(session: bytes, rank: int) -> bytes:
    """A frame that says: I am here, but cannot go on without party ``rank``."""
    return Header(Kind.WAITING, session, 0, _NO_DIGEST, rank).pack()


def agreed(session: bytes) -> bytes:
    """A frame that says: I have a connection to both others, and this is our session."""
    return Header(Kind.AGREED, session, 0, _NO_DIGEST, 0).pack()


@lru_cache(maxsize=65536)
def operation_digest(operation: str, shape: tuple[int, ...], dtype: torch.dtype) -> bytes:
    """What the sender says it is sending. The byte order is part of it: payloads travel as they lie in memory."""
    text = f"{operation}|{','.join(map(str, shape))}|{dtype}|{sys.byteorder}"
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()
