"""Secure averaging gives what float64 gives; whoever cheats is left out, or bounded like everybody else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from party_threads import run_apart
from scipy.stats import chi2
from torch import Tensor

from encml.errors import ConfigError, PrivacyError, ProtocolError
from encml.federated.aggregation import Aggregate, AggregationSettings, SecureAggregator, mean_from_rows
from encml.federated.client import encode_update
from encml.federated.sealing import Envelope, UploadContext, seal, split
from encml.mpc.dealing import Parcel, deal
from encml.mpc.parties import Parties
from encml.net.local import LocalTransport

KEYS = [X25519PrivateKey.generate() for _ in range(3)]
PUBLIC = [key.public_key() for key in KEYS]
Uploads = dict[str, Sequence[Envelope]]


def context(dimension: int, bits: int = 20) -> UploadContext:
    return UploadContext(bytes(16), 3, dimension, bits)


def uploads_of(integers: Mapping[str, Tensor], bits: int = 20) -> Uploads:
    return {
        name: split(seal(values, name, context(len(values), bits), PUBLIC), len(values))
        for name, values in integers.items()
    }


def encoded(updates: Mapping[str, Tensor], bits: int = 20) -> Uploads:
    return uploads_of({name: encode_update(update, bits) for name, update in updates.items()}, bits)


def aggregated(
    uploads: Uploads, dimension: int, weights: Mapping[str, int] | None = None, **settings: float
) -> Aggregate:
    parameters = AggregationSettings(**settings)  # type: ignore[arg-type]
    aggregator = SecureAggregator(Parties(LocalTransport(), seed=2), KEYS, parameters)
    return aggregator.aggregate(context(dimension, parameters.fraction_bits), uploads, weights)


def mean(aggregate: Aggregate) -> Tensor:
    return mean_from_rows(aggregate.rows, aggregate.weight, aggregate.fraction_bits)


def random_updates(count: int, dimension: int, norm: float, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    values *= norm / values.norm(dim=1, keepdim=True)
    return {f"client {i}": v for i, v in enumerate(values)}


# Values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [1, 5, 1000])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_mean_is_that_of_float64(count: int, dimension: int) -> None:
    updates = random_updates(count, dimension, 3.0)
    found = aggregated(encoded(updates), dimension)
    expected = torch.stack(list(updates.values())).mean(0)
    assert (mean(found) - expected).abs().max() <= 2.0**-21 + 1e-12
    assert found.accepted == tuple(updates)
    assert not found.refused
    assert found.weight == count


def test_updates_are_clipped_to_the_bound() -> None:
    updates = random_updates(3, 800, 0.5) | {"long": random_updates(1, 800, 40.0, 2)["client 0"]}
    expected = torch.stack([v / max(1.0, float(v.norm())) for v in updates.values()]).mean(0)
    assert (mean(aggregated(encoded(updates), 800, clip=1.0)) - expected).norm() < 3e-5


@pytest.mark.parametrize("weights", [(1, 2, 3), (6000, 1, 17), (10**15, 3 * 10**15, 5)])
def test_weights_count(weights: tuple[int, ...]) -> None:
    """Also such as the ring could not hold: they are scaled down, which costs some digits."""
    updates = random_updates(3, 50, 2.0)
    by_name = dict(zip(updates, weights, strict=True))
    found = aggregated(encoded(updates), 50, by_name)
    expected = sum(w * v for w, v in zip(weights, updates.values(), strict=True)) / sum(weights)
    exact = max(weights) < 10**5
    assert (mean(found) - expected).abs().max() < (2e-6 if exact else 2e-4)


def test_equal_weights_are_all_1_however_large() -> None:
    updates = random_updates(3, 5, 2.0)
    assert aggregated(encoded(updates), 5, dict.fromkeys(updates, 10**17)).weight == 3


@pytest.mark.parametrize("bits", [16, 20, 24])
def test_other_fraction_bits(bits: int) -> None:
    updates = random_updates(2, 30, 2.0)
    found = aggregated(encoded(updates, bits), 30, fraction_bits=bits)
    assert (mean(found) - torch.stack(list(updates.values())).mean(0)).abs().max() <= 2.0 ** (-bits - 1) + 1e-12


def test_a_hundred_clients_of_the_largest_norm_fit_the_ring() -> None:
    ones = torch.ones(10, dtype=torch.float64) * 59 / math.sqrt(10)
    updates = {str(i): ones for i in range(100)}
    assert (mean(aggregated(encoded(updates), 10)) - ones).abs().max() < 1e-6


def test_it_costs_what_it_says_whatever_the_dimension() -> None:
    spent = [aggregated(encoded(random_updates(8, d, 1.0)), d, clip=1.0).cost for d in (10, 2000)]
    assert spent[0].rounds == spent[1].rounds == 40
    assert spent[0].bytes == spent[1].bytes
    assert spent[0].bytes / 8 < 18_000


# Cheating clients --------------------------------------------------------------------------------------------------

D = 400


def cheats() -> dict[str, Tensor]:
    return {
        "2^32": torch.full((D,), 2**32),
        "-2^63": torch.full((D,), -(2**63)),
        "one 2^63 - 1": torch.tensor([2**63 - 1] + [0] * (D - 1)),
        "one 2^40": torch.tensor([0] * (D - 1) + [2**40]),
        "2^31 and small ones": torch.tensor([2**31] + [5] * (D - 1)),
    }


def test_values_that_wrap_around_are_turned_away_and_reported() -> None:
    honest = random_updates(2, D, 1.0)
    integers = {name: encode_update(v, 20) for name, v in honest.items()} | cheats()
    found = aggregated(uploads_of(integers), D, clip=1.0)
    assert found.accepted == tuple(honest)
    assert dict(found.refused) == dict.fromkeys(cheats(), "norm out of range")
    assert (mean(found) - torch.stack(list(honest.values())).mean(0)).abs().max() < 1e-5


@pytest.mark.parametrize("norm", [0.999, 1.0, 1.0001, 2.0, 59.0, 70.0, 200.0, 1400.0, 1500.0])
def test_a_long_update_moves_the_sum_by_no_more_than_the_bound(norm: float) -> None:
    """A client that does not scale itself down: left out, or clipped, in exact integers."""
    generator = torch.Generator().manual_seed(5)
    v = torch.randn(D, generator=generator, dtype=torch.float64)
    integers = (v * (norm * 2**20 / v.norm())).round().long()
    zero = torch.zeros(D, dtype=torch.int64)
    found = aggregated(uploads_of({"honest": zero, "long": integers}), D, clip=1.0)
    moved = [int(x) for x in found.rows.sum(0)]
    assert sum(x * x for x in moved) <= found.sensitivity**2
    assert found.sensitivity == 2**40
    assert ("long" in found.accepted) == bool(any(moved))
    if norm < 60:
        assert "long" in found.accepted
    if norm > 24 * 60:
        assert "long" in found.refused


class Dealt(SecureAggregator):
    """Parcels instead of envelopes: what a client that can seal anything could deal."""

    def __init__(
        self, parties: Parties, settings: AggregationSettings, parcels: Mapping[str, Sequence[Parcel]]
    ) -> None:
        super().__init__(parties, [KEYS[rank] for rank in parties.local], settings)
        self._dealt = parcels

    def _unsealed(self, context: UploadContext, name: str, envelopes: Sequence[Envelope]) -> list[Parcel | None]:
        return [self._dealt[name][rank] for rank in self._parties.local]


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("second", [False, True])
def test_shares_on_which_two_parties_disagree_are_refused(at: int, second: bool) -> None:
    """Otherwise a client could be measured by one vector and added with another."""
    honest = deal(torch.arange(5))
    parcels = list(deal(torch.arange(5)))
    other, victim = deal(torch.arange(5) + 1), parcels[at]
    parcels[at] = Parcel(
        victim.first if second else other[at].first, other[at].second if second else victim.second, (5,)
    )
    dealt = {"honest": honest, "two-faced": parcels}

    def script(parties: Parties) -> Aggregate:
        aggregator = Dealt(parties, AggregationSettings(), dealt)
        return aggregator.aggregate(context(5), dict.fromkeys(dealt, [Envelope(b"", b"")] * parties.here))

    together = script(Parties(LocalTransport(), seed=1))
    apart, _ = run_apart(script, seed=1)
    for found in (together, *apart):
        assert found.accepted == ("honest",)
        assert dict(found.refused) == {"two-faced": "shares are inconsistent"}
    assert mean(together).tolist() == [x / 2**20 for x in range(5)]


@pytest.mark.parametrize("place", [4 + 10, 84 + 10, 180 + 10, 276 + 10], ids=["blob 0", "blob 1", "blob 2", "body"])
def test_a_damaged_upload_is_left_out_by_all_parties(place: int) -> None:
    """Damaged for one party or two: the others can read it, and must leave it out as well."""
    updates = random_updates(3, 20, 1.0)
    uploads = encoded(updates)
    sealed = bytearray(seal(torch.zeros(20, dtype=torch.int64), "damaged", context(20), PUBLIC))
    sealed[place] ^= 4
    uploads["damaged"] = split(bytes(sealed), 20)
    together = aggregated(uploads, 20)
    assert dict(together.refused) == {"damaged": "upload does not open"}
    assert (mean(together) - torch.stack(list(updates.values())).mean(0)).abs().max() < 1e-6


def test_an_upload_of_another_round_or_client_is_left_out() -> None:
    uploads = encoded(random_updates(2, 20, 1.0))
    earlier = UploadContext(bytes(16), 2, 20, 20)
    uploads["replayed"] = split(seal(torch.zeros(20, dtype=torch.int64), "replayed", earlier, PUBLIC), 20)
    uploads["thief"] = uploads["client 0"]
    assert dict(aggregated(uploads, 20).refused) == dict.fromkeys(["replayed", "thief"], "upload does not open")


def test_if_nothing_can_be_used_the_error_says_so() -> None:
    uploads = uploads_of({name: v for name, v in cheats().items() if name != "2^31 and small ones"})
    uploads["thief"] = uploads["2^32"]
    with pytest.raises(ProtocolError, match=r"none of the 5 uploads could be used: norm out of range, upload does not"):
        aggregated(uploads, D)


# Noise -------------------------------------------------------------------------------------------------------------


def variance_is(samples: Tensor, expected: float) -> bool:
    """Two-sided test of a Gaussian's variance at 1e-9."""
    values = samples.to(torch.float64)
    statistic = float((values / math.sqrt(expected)).square().sum())
    low, high = chi2.ppf([1e-9, 1 - 1e-9], len(values))
    return bool(low < statistic < high)


def test_noise_has_the_variance_that_is_accounted_for() -> None:
    d = 40_000
    updates = {"zero": torch.zeros(d)}
    rows = aggregated(encoded(updates), d, clip=0.5, noise_multiplier=2.0).rows
    sigma = 2.0 * 0.5 * 2.0**40
    assert variance_is(rows.sum(0), 1.5 * sigma**2)
    assert not variance_is(rows.sum(0), 1.35 * sigma**2)
    assert abs(float(rows.sum(0).double().mean())) < 6 * sigma * math.sqrt(1.5 / d)


def test_two_honest_parties_make_the_whole_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the masks, each row is that party's noise: half the variance each, independent."""
    d = 40_000
    monkeypatch.setattr(Parties, "zero", lambda self, shape: torch.zeros((3, *shape), dtype=torch.int64))
    rows = aggregated({}, d, clip=0.5, noise_multiplier=2.0).rows
    sigma = 2.0 * 0.5 * 2.0**40
    for rank in range(3):
        assert variance_is(rows[rank], sigma**2 / 2)
        assert variance_is(rows[rank] + rows[(rank + 1) % 3], sigma**2)


def test_noise_is_new_each_time_and_integer() -> None:
    one, two = (aggregated({}, 500, clip=1.0, noise_multiplier=1.0).rows.sum(0) for _ in range(2))
    assert not torch.equal(one, two)
    assert len(np.unique(one.numpy() % 1024)) > 100


def test_no_uploads_and_no_noise_make_nothing() -> None:
    found = aggregated({}, 6)
    assert found.rows.sum(0).tolist() == [0] * 6
    assert (found.weight, found.accepted) == (0, ())


def test_noise_and_unequal_weights_are_refused() -> None:
    updates = random_updates(2, 5, 1.0)
    with pytest.raises(PrivacyError, match="weigh all clients alike"):
        aggregated(encoded(updates), 5, {"client 0": 1, "client 1": 2}, clip=1.0, noise_multiplier=1.0)


# Parties apart -----------------------------------------------------------------------------------------------------


def test_three_parties_apart_do_what_the_process_does() -> None:
    """Bit for bit, with one client turned away at each check."""
    integers = {name: encode_update(v, 20) for name, v in random_updates(3, 60, 2.0).items()}
    integers["wrapping"] = torch.full((60,), 2**32)
    uploads = uploads_of(integers)
    uploads["thief"] = uploads["client 1"]
    settings = AggregationSettings(clip=1.0)

    def script(parties: Parties) -> Aggregate:
        mine = {name: [envelopes[rank] for rank in parties.local] for name, envelopes in uploads.items()}
        return SecureAggregator(parties, [KEYS[rank] for rank in parties.local], settings).aggregate(context(60), mine)

    together = script(Parties(LocalTransport(), seed=11))
    apart, _ = run_apart(script, seed=11)
    assert torch.equal(torch.cat([found.rows for found in apart]), together.rows)
    for rank, found in enumerate(apart):
        assert (found.accepted, dict(found.refused)) == (together.accepted, dict(together.refused))
        assert found.cost.rounds == together.cost.rounds
        assert found.cost.sent[rank] == together.cost.sent[rank]
    assert together.refused == {"thief": "upload does not open", "wrapping": "norm out of range"}


# Settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"clip": 0.001}, ConfigError, "allowed 0.00390625 to 60.3"),
        ({"clip": 61.0}, ConfigError, "found 61.0"),
        ({"clip": math.nan}, ConfigError, "clipping norm"),
        ({"noise_multiplier": -1.0, "clip": 1.0}, ConfigError, "noise multiplier"),
        ({"noise_multiplier": math.inf, "clip": 1.0}, ConfigError, "noise multiplier"),
        ({"noise_multiplier": 1.0}, PrivacyError, "needs clip"),
        ({"fraction_bits": 7}, ConfigError, "allowed 8 to 24"),
        ({"fraction_bits": 25}, ConfigError, "allowed 8 to 24"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        AggregationSettings(**settings)  # type: ignore[arg-type]


def test_calls_that_do_not_fit_are_refused() -> None:
    parties = Parties(LocalTransport(), seed=2)
    with pytest.raises(ConfigError, match="found 2 keys, expected 3"):
        SecureAggregator(parties, KEYS[:2])
    aggregator = SecureAggregator(parties, KEYS)
    with pytest.raises(ProtocolError, match="agreed on 20"):
        aggregator.aggregate(context(5, 16), {})
    with pytest.raises(ProtocolError, match="1 envelopes of one client, expected 3"):
        aggregator.aggregate(context(5), {"a": [Envelope(b"", b"")]})
    with pytest.raises(ConfigError, match="positive whole number"):
        aggregator.aggregate(context(5), encoded({"a": torch.zeros(5)}), {"a": 0})
    for rows in (torch.zeros((2, 5), dtype=torch.int64), torch.zeros((3, 5))):
        with pytest.raises(ProtocolError, match="rows of 3 parties are needed"):
            mean_from_rows(rows, 1, 40)


def test_a_sum_that_the_ring_cannot_hold_is_refused() -> None:
    many = dict.fromkeys(map(str, range(80_000)))
    aggregator = SecureAggregator(Parties(LocalTransport(), seed=2), KEYS)
    with pytest.raises(ConfigError, match="does not fit the ring"):
        aggregator._integer_weights(many, None)


def test_reprs_hold_no_values() -> None:
    found = aggregated(encoded({"a": torch.ones(4)}), 4)
    assert repr(found) == "Aggregate(1 accepted, 0 refused, rows=(3, 4))"
