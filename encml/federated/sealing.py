"""Sealed uploads: a client's secret-shared update, which only the computing parties can open.

Whatever carries an upload, the federated server included, sees bytes that do not depend on the update. Format, with d
the number of entries (every field has one length, so there is nothing to parse):

    "ESU1" | key blob for party 0, 80 B | for party 1, 96 B | for party 2, 96 B | body, 8 d + 16 B

* body: the share x_2, encrypted once with AES-256-GCM under a fresh key (hence a constant nonce is safe);
* key blob: HPKE (RFC 9180, base mode; X25519, HKDF-SHA256, AES-256-GCM) to the party's public key, of the two seeds for
  party 0, of one seed and the body's key for parties 1 and 2 (see encml.mpc.dealing).

Both are bound to the session, the round, the client, the format and the party, so that an upload replayed to another
place does not open. Not protected: who uploads, when, and how much; nor does HPKE's base mode prove who sealed, so that
whoever may speak for a client is to be decided by those who carry the upload.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from torch import Tensor

from encml.errors import ProtocolError
from encml.mpc.dealing import Parcel, deal
from encml.net.transport import PARTIES
from encml.ring.prg import KEY_BYTES

SESSION_BYTES = 16
MAX_NAME_BYTES = 255

_MAGIC = b"ESU1"
_BODY_KEY_BYTES = 32
_TAG_BYTES = 16
_ENTRY_BYTES = 8
_SECRETS = (2 * KEY_BYTES, KEY_BYTES + _BODY_KEY_BYTES, _BODY_KEY_BYTES + KEY_BYTES)
_BLOBS = tuple(32 + size + _TAG_BYTES for size in _SECRETS)
_NONCE = bytes(12)
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class UploadContext:
    """What an upload is for: public, the same for all clients of a round."""

    session: bytes
    """16 random bytes that name the run."""
    round: int
    dimension: int
    """Entries of an update."""
    fraction_bits: int

    def __post_init__(self) -> None:
        if len(self.session) != SESSION_BYTES or self.round < 0 or self.dimension < 1 or self.fraction_bits < 0:
            raise ProtocolError(f"not a round to upload for: {self!r}; the session has {SESSION_BYTES} bytes")

    def bind(self, client: str, place: int) -> bytes:
        """The bytes that an upload's ciphertexts authenticate; ``place``: a party's rank, or 3 for the body."""
        name = client.encode()
        if not 0 < len(name) <= MAX_NAME_BYTES:
            raise ProtocolError(f"a client's name has 1 to {MAX_NAME_BYTES} bytes, found {len(name)}")
        numbers = struct.pack("<QQBB", self.round, self.dimension, self.fraction_bits, place)
        return b"encml upload 1" + self.session + numbers + name


@dataclass(frozen=True, slots=True, repr=False)
class Envelope:
    """What one party receives of an upload: its key blob and, for parties 1 and 2, the body."""

    blob: bytes
    body: bytes

    def __repr__(self) -> str:
        return f"Envelope({len(self.blob)} + {len(self.body)} bytes)"


def upload_bytes(dimension: int) -> int:
    """Bytes of an upload: 292 more than 8 an entry."""
    return len(_MAGIC) + sum(_BLOBS) + _ENTRY_BYTES * dimension + _TAG_BYTES


def seal(integers: Tensor, client: str, context: UploadContext, keys: Sequence[X25519PublicKey]) -> bytes:
    """Deal int64 ring elements (d,) and seal each party's part to its public key (three, by rank)."""
    if integers.dtype != torch.int64 or tuple(integers.shape) != (context.dimension,) or len(keys) != PARTIES:
        raise ProtocolError(
            f"cannot seal {integers.dtype} {tuple(integers.shape)} for {len(keys)} parties: expected torch.int64 "
            f"({context.dimension},) and {PARTIES} keys"
        )
    zero, one, two = deal(integers)
    body_key = os.urandom(_BODY_KEY_BYTES)
    body = AESGCM(body_key).encrypt(_NONCE, _to_bytes(_elements(two.first)), context.bind(client, PARTIES))
    secrets = (
        _seed(zero.first) + _seed(zero.second),
        _seed(one.first) + body_key,
        body_key + _seed(two.second),
    )
    blobs = [
        _SUITE.encrypt(secret, key, info=context.bind(client, rank))
        for rank, (secret, key) in enumerate(zip(secrets, keys, strict=True))
    ]
    return b"".join([_MAGIC, *blobs, body])


def split(upload: bytes, dimension: int) -> tuple[Envelope, Envelope, Envelope]:
    """The envelope for each party, for whoever carries the upload. Raises ProtocolError for another size or format."""
    if len(upload) != upload_bytes(dimension) or not upload.startswith(_MAGIC):
        raise ProtocolError(
            f"not an upload of {dimension} entries: {len(upload)} bytes, starting {upload[:4].hex() or 'nowhere'}; "
            f"expected {upload_bytes(dimension)} bytes, starting {_MAGIC.hex()}"
        )
    position = len(_MAGIC)
    blobs = []
    for size in _BLOBS:
        blobs.append(upload[position : position + size])
        position += size
    body = upload[position:]
    return Envelope(blobs[0], b""), Envelope(blobs[1], body), Envelope(blobs[2], body)


def unseal(envelope: Envelope, client: str, context: UploadContext, rank: int, key: X25519PrivateKey) -> Parcel:
    """The parcel of party ``rank``. Raises ProtocolError if it was not sealed for it, this client and this round."""
    body_size = _ENTRY_BYTES * context.dimension + _TAG_BYTES if rank else 0
    if len(envelope.blob) != _BLOBS[rank] or len(envelope.body) != body_size:
        raise ProtocolError(f"{envelope!r} is not for party {rank}: expected {_BLOBS[rank]} + {body_size} bytes")
    shape = (context.dimension,)
    try:
        secret = _SUITE.decrypt(envelope.blob, key, info=context.bind(client, rank))
        if rank == 0:
            return Parcel(secret[:KEY_BYTES], secret[KEY_BYTES:], shape)
        body_key = secret[KEY_BYTES:] if rank == 1 else secret[:_BODY_KEY_BYTES]
        body = AESGCM(body_key).decrypt(_NONCE, envelope.body, context.bind(client, PARTIES))
    except InvalidTag as error:
        raise ProtocolError(
            f"the upload does not open for party {rank}: damaged, or sealed for another party, client, round or session"
        ) from error
    elements = torch.from_numpy(np.frombuffer(body, dtype="<i8").astype(np.int64))
    if rank == 1:
        return Parcel(secret[:KEY_BYTES], elements, shape)
    return Parcel(elements, secret[_BODY_KEY_BYTES:], shape)


def _seed(half: bytes | Tensor) -> bytes:
    if not isinstance(half, bytes):
        raise ProtocolError("a dealt half is expected to be a seed")
    return half


def _elements(half: bytes | Tensor) -> Tensor:
    if isinstance(half, bytes):
        raise ProtocolError("a dealt half is expected to be ring elements")
    return half


def _to_bytes(elements: Tensor) -> bytes:
    return elements.numpy().astype("<i8", copy=False).tobytes()
