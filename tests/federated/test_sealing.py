"""Sealed uploads open for whom they are meant, where they are meant; for everybody else they are noise."""

from __future__ import annotations

import os
import random

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from torch import Tensor

from encml.errors import ProtocolError
from encml.federated import sealing
from encml.federated.sealing import Envelope, UploadContext, seal, split, unseal, upload_bytes

D = 37
KEYS = [X25519PrivateKey.generate() for _ in range(3)]
CONTEXT = UploadContext(bytes(range(16)), 7, D, 20)


def update(seed: int = 1) -> Tensor:
    return torch.randint(-(2**62), 2**62, (D,), generator=torch.Generator().manual_seed(seed))


def sealed(values: Tensor | None = None, client: str = "ada") -> bytes:
    return seal(update() if values is None else values, client, CONTEXT, [key.public_key() for key in KEYS])


def open_all(upload: bytes) -> list[Tensor]:
    envelopes = enumerate(split(upload, D))
    return [unseal(envelope, "ada", CONTEXT, rank, KEYS[rank]).expand() for rank, envelope in envelopes]


def test_three_parcels_make_the_update_and_neighbours_agree() -> None:
    parcels = open_all(sealed())
    assert torch.equal(parcels[0][0] + parcels[1][0] + parcels[2][0], update())
    for rank in range(3):
        assert torch.equal(parcels[rank][1], parcels[(rank + 1) % 3][0])


@pytest.mark.parametrize("dimension", [1, 37, 29_066])
def test_an_upload_costs_one_update_and_292_bytes(dimension: int) -> None:
    context = UploadContext(bytes(16), 0, dimension, 20)
    upload = seal(torch.zeros(dimension, dtype=torch.int64), "a", context, [key.public_key() for key in KEYS])
    assert len(upload) == upload_bytes(dimension) == 8 * dimension + 292


def test_sealing_twice_gives_nothing_in_common() -> None:
    one, two = sealed(), sealed()
    same = sum(a == b for a, b in zip(one[4:], two[4:], strict=True))
    assert same < 20  # of 584 bytes, 2 are expected


@pytest.mark.parametrize("rank", range(3))
@pytest.mark.parametrize(
    "change",
    [
        {"round": 8},
        {"round": 6},
        {"session": bytes(16)},
        {"fraction_bits": 21},
        {"client": "bob"},
        {"client": "adaa"},
        {"key": 1},
    ],
    ids=str,
)
def test_an_upload_does_not_open_elsewhere(rank: int, change: dict[str, object]) -> None:
    fields = {"session": CONTEXT.session, "round": 7, "dimension": D, "fraction_bits": 20}
    context = UploadContext(**{name: change.get(name, value) for name, value in fields.items()})  # type: ignore[arg-type]
    key = KEYS[(rank + int("key" in change)) % 3]
    with pytest.raises(ProtocolError, match="does not open"):
        unseal(split(sealed(), D)[rank], str(change.get("client", "ada")), context, rank, key)


def test_an_envelope_is_for_one_party() -> None:
    envelopes = split(sealed(), D)
    for place in range(3):
        for rank in range(3):
            if place != rank:
                with pytest.raises(ProtocolError):
                    unseal(envelopes[place], "ada", CONTEXT, rank, KEYS[rank])
                with pytest.raises(ProtocolError):
                    unseal(envelopes[place], "ada", CONTEXT, place, KEYS[rank])


def test_parts_of_two_uploads_do_not_mix() -> None:
    """Party 1's key with the body of another upload of the same client and round."""
    one, two = split(sealed(), D)[1], split(sealed(), D)[1]
    with pytest.raises(ProtocolError, match="does not open"):
        unseal(Envelope(one.blob, two.body), "ada", CONTEXT, 1, KEYS[1])


def test_a_body_is_bound_to_its_round_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also should a client ever use a body key twice."""
    monkeypatch.setattr(sealing, "os", type("Same", (), {"urandom": staticmethod(bytes)}))
    later = UploadContext(CONTEXT.session, 8, D, 20)
    now, then = (
        split(seal(update(), "ada", context, [k.public_key() for k in KEYS]), D)[1] for context in (CONTEXT, later)
    )
    assert unseal(now, "ada", CONTEXT, 1, KEYS[1]).shape == (D,)
    with pytest.raises(ProtocolError, match="does not open"):
        unseal(Envelope(now.blob, then.body), "ada", CONTEXT, 1, KEYS[1])


def test_every_single_bit_counts() -> None:
    """Each byte of an upload, changed by one bit, keeps at least one party from opening it."""
    upload = sealed()
    for position in range(len(upload)):
        changed = bytearray(upload)
        changed[position] ^= 1 << (position % 8)
        with pytest.raises(ProtocolError):
            open_all(bytes(changed))


def test_fuzzed_uploads_are_refused_and_never_crash() -> None:
    chance = random.Random(3)
    upload = sealed()
    for _ in range(3000):
        fuzzed = bytearray(upload)
        for _ in range(chance.randint(1, 4)):
            kind, at = chance.randrange(4), chance.randrange(len(fuzzed) + 1)
            if kind == 0:
                fuzzed[at : at + chance.randrange(40)] = b""
            elif kind == 1:
                fuzzed[at:at] = os.urandom(chance.randrange(40))
            elif kind == 2:
                fuzzed[at : at + 40] = os.urandom(len(fuzzed[at : at + 40]))
            else:
                fuzzed = fuzzed[:at]
        if bytes(fuzzed) == upload:
            continue
        with pytest.raises(ProtocolError):
            open_all(bytes(fuzzed))


@pytest.mark.parametrize("blob", [b"", bytes(32), bytes(80), b"\xff" * 80, bytes(96), b"\xff" * 96, bytes(10**6)])
@pytest.mark.parametrize("rank", range(3))
def test_envelopes_of_any_size_are_refused(rank: int, blob: bytes) -> None:
    for body in (b"", bytes(8 * D + 16), bytes(5)):
        with pytest.raises(ProtocolError):
            unseal(Envelope(blob, body), "ada", CONTEXT, rank, KEYS[rank])


@pytest.mark.parametrize(
    "values", [torch.zeros(D), torch.zeros(D + 1, dtype=torch.int64), torch.zeros((1, D), dtype=torch.int64)]
)
def test_only_ring_elements_of_the_rounds_dimension_are_sealed(values: Tensor) -> None:
    with pytest.raises(ProtocolError, match="cannot seal"):
        sealed(values)
    with pytest.raises(ProtocolError, match="2 parties"):
        seal(update(), "ada", CONTEXT, [key.public_key() for key in KEYS[:2]])


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128])
def test_names_have_1_to_255_bytes(name: str) -> None:
    with pytest.raises(ProtocolError, match="name has 1 to 255 bytes"):
        sealed(client=name)


@pytest.mark.parametrize("fields", [(bytes(15), 1, 1, 20), (bytes(16), -1, 1, 20), (bytes(16), 1, 0, 20)])
def test_impossible_rounds_are_refused(fields: tuple[bytes, int, int, int]) -> None:
    with pytest.raises(ProtocolError, match="not a round to upload for"):
        UploadContext(*fields)


def test_envelopes_and_parcels_do_not_print_what_they_hold() -> None:
    envelope = split(sealed(), D)[1]
    assert repr(envelope) == "Envelope(96 + 312 bytes)"
    assert repr(unseal(envelope, "ada", CONTEXT, 1, KEYS[1])) == f"Parcel(shape=({D},))"
