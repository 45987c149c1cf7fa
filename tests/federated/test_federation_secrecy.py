"""Nothing that the server or a single party receives depends on one client's update.

Two clients and two worlds: in world 0 the first has a short update and the second a long one, which is clipped; in
world 1 they have each other's. What everybody is meant to learn (who is accepted, and the sum) is the same in both; so
all that the server handles, and all that a party receives given what it knows, must have the same distribution in both.

For a party, what it knows is frozen: the shares it was dealt, and the two streams of masks it holds. The third share is
what the secret asks for; the third stream is drawn anew in each of RUNS runs. A message without a mask, or with one its
receiver knows, is then a constant, or takes few values, that differ between the worlds. Compared by chi-square: every
half-byte of every message. Each tampered version, with one mask taken out, must be noticed by the same test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy.stats import chi2
from torch import Tensor

from encml.federated import sealing
from encml.federated.aggregation import AggregationSettings, SecureAggregator
from encml.federated.sealing import Envelope, UploadContext, seal, split, unseal
from encml.mpc import circuits, dealing, multiplication
from encml.mpc.dealing import Parcel
from encml.mpc.parties import Parties, Row
from encml.net.local import LocalTransport
from encml.privacy import wraparound
from encml.ring.kernels.elementwise import Integers, Words
from encml.ring.prg import KeyStream, fresh_key

D = 3
RUNS = 128
ALARM = 1e-11
"""Some 5e4 comparisons are made: a false alarm has a chance of about 1e-6."""

SHORT = torch.tensor([2**18 + 77, -(2**17) - 5, 3])
LONG = torch.tensor([-(2**21) - 999, 2**20 + 1, 2**22 - 1])
WORLDS = ((SHORT, LONG), (LONG, SHORT))
NAMES = ("ada", "bob")
KEYS = [X25519PrivateKey.generate() for _ in range(3)]
CONTEXT = UploadContext(bytes(16), 1, D, 20)
SETTINGS = AggregationSettings(clip=1.0)

Bytes = npt.NDArray[np.uint8]
Tamper = Callable[[pytest.MonkeyPatch], None]


def ring(count: int, seed: int) -> Tensor:
    high, low = torch.randint(0, 2**32, (2, count), generator=torch.Generator().manual_seed(seed))
    return (high << 32) | low


def least_p_value(one: Bytes, two: Bytes) -> float:
    """The least p-value for the same distribution in both (runs, bytes) samples, over all half-bytes."""
    assert one.shape == two.shape, "even the sizes of messages must not depend on an update"
    halves = [np.concatenate([sample & 15, sample >> 4], axis=1).astype(np.intp) for sample in (one, two)]
    columns = halves[0].shape[1]
    counts = [
        np.bincount((half + 16 * np.arange(columns)).ravel(), minlength=16 * columns).reshape(columns, 16)
        for half in halves
    ]
    total = counts[0] + counts[1]
    squares = (counts[0] - counts[1]) ** 2.0
    statistic = np.divide(squares, total, out=np.zeros(total.shape), where=total > 0).sum(1)
    freedom = (total > 0).sum(1) - 1
    return float(np.where(freedom > 0, chi2.sf(statistic, np.maximum(freedom, 1)), 1.0).min())


# What a party receives from the others -----------------------------------------------------------------------------


class Frozen(SecureAggregator):
    """Deals each client's update so that one party's two shares are always the same."""

    def __init__(self, parties: Parties, party: int, updates: Sequence[Tensor], multiple: int = 1) -> None:
        super().__init__(parties, KEYS, SETTINGS)
        self._party, self._updates, self._multiple = party, dict(zip(NAMES, updates, strict=True)), multiple

    def _unsealed(self, context: UploadContext, name: str, envelopes: Sequence[Envelope]) -> list[Parcel | None]:
        first, second = (ring(D, seed + NAMES.index(name)) * self._multiple for seed in (50, 60))
        by_index = {0: first, 1: second, 2: self._updates[name] - first - second}
        shares = [by_index[(i - self._party) % 3] for i in range(3)]
        return [Parcel(shares[i], shares[(i + 1) % 3], (D,)) for i in range(3)]


def received(party: int, world: int) -> Bytes:
    """All messages to ``party`` in RUNS aggregations: (RUNS, bytes)."""
    samples = []
    for _ in range(RUNS):
        seen: list[bytes] = []

        def tap(source: int, destination: int, payload: Tensor, operation: str, into: list[bytes] = seen) -> None:
            if destination == party:
                into.append(payload.contiguous().numpy().tobytes())

        parties = Parties(LocalTransport(tap=tap), seed=1)
        seen.clear()
        parties._streams[(party + 1) % 3] = KeyStream(fresh_key())
        aggregator = Frozen(parties, party, WORLDS[world])
        found = aggregator.aggregate(CONTEXT, dict.fromkeys(NAMES, [Envelope(b"", b"")] * 3))
        assert found.accepted == NAMES
        samples.append(np.frombuffer(b"".join(seen), np.uint8))
    return np.stack(samples)


@pytest.fixture
def few_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the norm check's projections, one word of bits a client: the same messages, shorter."""
    monkeypatch.setattr(wraparound, "DIRECTIONS", 32)


@pytest.mark.usefixtures("few_directions")
@pytest.mark.parametrize("party", range(3))
def test_what_a_party_receives_does_not_depend_on_an_update(party: int) -> None:
    views = [received(party, world) for world in (0, 1)]
    assert views[0].shape[1] > 4000
    assert least_p_value(*views) > ALARM


def without_zero_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Parties.mask_rows

    def mask_rows(self: Parties, *arguments: Any) -> tuple[Words, list[Row]]:
        room, rows = original(self, *arguments)
        room[...] = 0
        return room, [(place, own, np.zeros_like(own)) for place, own, _ in rows]

    monkeypatch.setattr(Parties, "mask_rows", mask_rows)


def without_zero_masks_on_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks are the last two things that the loops of AND gates are given."""

    def bare(gates: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            *inputs, own, previous = arguments
            own[...] = 0
            gates(*inputs, own, np.zeros_like(previous))

        return call

    monkeypatch.setattr(multiplication, "and_masked", bare(multiplication.and_masked))
    monkeypatch.setattr(circuits, "carry_gates", bare(circuits.carry_gates))


def with_one_common_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mask is one that all parties know."""
    original = Parties.masks

    def masks(self: Parties, *arguments: Any, **options: Any) -> Integers | None:
        mask = original(self, *arguments, **options)
        if mask is not None:
            mask[...] = 1
        return mask

    monkeypatch.setattr(Parties, "masks", masks)


@pytest.mark.usefixtures("few_directions")
@pytest.mark.parametrize("tamper", [without_zero_masks, without_zero_masks_on_bits, with_one_common_stream])
def test_a_missing_mask_is_noticed(tamper: Tamper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "RUNS", 48)
    tamper(monkeypatch)
    assert any(least_p_value(received(party, 0), received(party, 1)) < ALARM for party in range(3))


# What a party finds in its envelope --------------------------------------------------------------------------------


def parcels(party: int, update: Tensor, runs: int = 600) -> Bytes:
    samples = []
    for _ in range(runs):
        upload = seal(update, "ada", CONTEXT, [key.public_key() for key in KEYS])
        parcel = unseal(split(upload, D)[party], "ada", CONTEXT, party, KEYS[party])
        samples.append(parcel.expand().numpy().reshape(-1).view(np.uint8))
    return np.stack(samples)


@pytest.mark.parametrize("party", range(3))
def test_what_a_party_is_dealt_does_not_depend_on_the_update(party: int) -> None:
    assert least_p_value(parcels(party, SHORT), parcels(party, LONG)) > ALARM


def test_a_deal_without_randomness_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dealing, "fresh_key", lambda: bytes(16))
    assert least_p_value(parcels(1, SHORT, 50), parcels(1, LONG, 50)) < ALARM


# What the server handles -------------------------------------------------------------------------------------------


def uploads(world: int, runs: int = 600) -> Bytes:
    """Both clients' sealed uploads, as the server gets them."""
    keys = [key.public_key() for key in KEYS]
    pairs = [
        b"".join(seal(update, name, CONTEXT, keys) for name, update in zip(NAMES, WORLDS[world], strict=True))
        for _ in range(runs)
    ]
    return np.stack([np.frombuffer(pair, np.uint8) for pair in pairs])


def test_what_the_server_carries_does_not_depend_on_an_update() -> None:
    assert least_p_value(uploads(0), uploads(1)) > ALARM


class NoCipher:
    """Leaves the text as it is."""

    def __init__(self, key: bytes) -> None:
        assert len(key) == 32

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        return data + bytes(16)


@pytest.mark.parametrize("dealt_in_the_clear", [True, False])
def test_an_upload_that_is_not_encrypted_is_noticed_if_it_tells_anything(
    dealt_in_the_clear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body alone is one share and tells nothing even without encryption; without the deal's masks it does."""
    monkeypatch.setattr(sealing, "AESGCM", NoCipher)
    if dealt_in_the_clear:
        monkeypatch.setattr(dealing, "fresh_key", lambda: bytes(16))
    assert (least_p_value(uploads(0, 50), uploads(1, 50)) < ALARM) == dealt_in_the_clear


SAME_SUM = (
    (torch.tensor([16, 32, -64]), torch.tensor([160, 16, 0])),
    (torch.tensor([17, 31, -63]), torch.tensor([159, 17, -1])),
)
"""Neither is clipped, so that the sum is the same to the last bit."""


def rows(world: int, runs: int = 80) -> Bytes:
    """The rows that the parties hand over; two shares of every update frozen to multiples of 16, every mask new.

    Without a mask the last half-bytes of world 0 are thus 0.
    """
    samples = []
    for _ in range(runs):
        parties = Parties(LocalTransport(), seed=1)
        for stream in range(3):
            parties._streams[stream] = KeyStream(fresh_key())
        aggregator = Frozen(parties, 0, SAME_SUM[world], multiple=16)
        handed = aggregator.aggregate(CONTEXT, dict.fromkeys(NAMES, [Envelope(b"", b"")] * 3)).rows
        assert handed.sum(0).tolist() == [176 << 20, 48 << 20, -64 << 20]
        samples.append(handed.numpy().reshape(-1).view(np.uint8))
    return np.stack(samples)


@pytest.mark.usefixtures("few_directions")
def test_what_the_parties_hand_to_the_server_means_nothing_but_its_sum() -> None:
    assert least_p_value(rows(0), rows(1)) > ALARM


@pytest.mark.usefixtures("few_directions")
def test_rows_that_are_not_masked_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    released = SecureAggregator._released

    def bare(self: SecureAggregator, sums: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            without_zero_masks(patch)
            return released(self, sums)

    monkeypatch.setattr(SecureAggregator, "_released", bare)
    assert least_p_value(rows(0), rows(1)) < ALARM
