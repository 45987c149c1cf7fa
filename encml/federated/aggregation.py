"""Secure averaging: sealed uploads in, one masked and noisy row from every party out.

What the three parties do with the uploads of a round, and what each step tells them:

1. open their envelopes, compare digests of the shares they have in common, and drop clients whose upload is damaged or
   inconsistent (told: which clients those are);
2. drop clients whose norm the ring cannot hold (told: which; see encml.privacy.wraparound);
3. squared norms, clipping factors, weighted sum: nothing is told (see encml.privacy.clipping);
4. every party adds its own exact integer noise to its row of the sum, and masks the row. Only the sum of the three rows
   means something, and only to whom they are handed: the noisy sum of clipped updates.

No rounding stands between clipping and noise: a client's contribution is an integer vector of norm at most
``Aggregate.sensitivity``, whatever the client did.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from torch import Tensor

from encml.errors import ConfigError, PrivacyError, ProtocolError
from encml.federated.sealing import Envelope, UploadContext, unseal
from encml.mpc.dealing import Parcel, receive
from encml.mpc.parties import Parties
from encml.net.ledger import Cost
from encml.net.transport import PARTIES
from encml.privacy.checks import Mechanism
from encml.privacy.clipping import FACTOR_BITS, MIN_BOUND, clipping_factors, squared_norms, weighted_sum
from encml.privacy.discrete import RandomSource, discrete_gaussian
from encml.privacy.distributed import party_variance
from encml.privacy.wraparound import NORM_LIMIT, accepted
from encml.ring.fixed import RANGE_BITS

UPDATE_FRACTION_BITS = 20
"""An update's entries are multiples of 2^-20, about 1e-6."""

_DIGEST_BYTES = 32
_NOISE_TAIL = 15
"""The noise stays within so many of its standard deviations but for 2^-160."""


@dataclass(frozen=True, slots=True)
class AggregationSettings:
    """What the parties agree on for a whole run.

    clip: C, the L2 norm to which each update is clipped; None: the largest that the ring holds, 60 at 20 fraction bits.
    noise_multiplier: standard deviation, in units of C, of the noise on the sum as one corrupted party faces it; the
        three parties' noise together has sqrt(1.5) times that. 0: no noise.
    mechanism: the accountant for which the noise must be fit.
    """

    clip: float | None = None
    noise_multiplier: float = 0.0
    mechanism: Mechanism = "rdp"
    fraction_bits: int = UPDATE_FRACTION_BITS

    def __post_init__(self) -> None:
        if not 8 <= self.fraction_bits <= 24:
            raise ConfigError(f"fraction bits of an update: found {self.fraction_bits}, allowed 8 to 24")
        low, high = math.ldexp(MIN_BOUND, -self.fraction_bits), math.ldexp(NORM_LIMIT, -self.fraction_bits)
        if self.clip is not None and not low <= self.clip <= high:
            raise ConfigError(
                f"clipping norm of updates: found {self.clip}, allowed {low:g} to {high:.6g} at {self.fraction_bits} "
                "fraction bits"
            )
        if not 0 <= self.noise_multiplier < math.inf:
            raise ConfigError(f"noise multiplier: found {self.noise_multiplier}, allowed are finite numbers from 0")
        if self.noise_multiplier and self.clip is None:
            raise PrivacyError("noise is measured in units of the clipping norm: noise_multiplier needs clip")

    @property
    def bound(self) -> int:
        """C in ring units, rounded down."""
        return NORM_LIMIT if self.clip is None else math.floor(math.ldexp(self.clip, self.fraction_bits))

    @property
    def sum_fraction_bits(self) -> int:
        """Fraction bits of the sum: those of an update and of a clipping factor."""
        return self.fraction_bits + FACTOR_BITS


@dataclass(frozen=True, slots=True, repr=False)
class Aggregate:
    """What the parties of this process hand to the receiver, and what they learned.

    rows: int64 (P, d), one for each party here; the three add up to the noisy sum with ``fraction_bits``, any two are
        uniformly random.
    accepted, refused: clients in the sum, and the others with the reason.
    weight: sum of the accepted clients' integer weights.
    sensitivity: L2 norm, in units of the sum, that no client's contribution exceeds, for each unit of its weight.
    cost: what the parties sent to each other.
    """

    rows: Tensor
    accepted: tuple[str, ...]
    refused: Mapping[str, str]
    weight: int
    sensitivity: int
    fraction_bits: int
    cost: Cost

    def __repr__(self) -> str:
        return f"Aggregate({len(self.accepted)} accepted, {len(self.refused)} refused, rows={tuple(self.rows.shape)})"


class SecureAggregator:
    """The computing parties' side of secure averaging.

    ``keys``: the private key of each party that lives here, ascending by rank.
    """

    def __init__(
        self, parties: Parties, keys: Sequence[X25519PrivateKey], settings: AggregationSettings | None = None
    ) -> None:
        if len(keys) != parties.here:
            raise ConfigError(f"found {len(keys)} keys, expected {parties.here}, one for each party in this process")
        self.settings = settings if settings is not None else AggregationSettings()
        self._parties = parties
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        return f"SecureAggregator({self._parties!r}, {self.settings!r})"

    def aggregate(
        self,
        context: UploadContext,
        uploads: Mapping[str, Sequence[Envelope]],
        weights: Mapping[str, int] | None = None,
    ) -> Aggregate:
        """The masked, noisy, weighted sum of the clipped updates in ``uploads``.

        ``uploads``: for every client the envelopes of the parties that live here; the same clients in the same order
        at every party. ``weights``: public positive integers, such as numbers of examples; scaled down where the ring
        could not hold the sum; None: all 1. Without uploads the sum is 0, and there is still noise on it.

        40 rounds; in all, some 18 kB a client, whatever d. A row is not sent here but handed over: 8 d bytes a party.
        Raises ProtocolError if none of the uploads could be used, PrivacyError for noise with unequal weights.
        """
        if context.fraction_bits != self.settings.fraction_bits:
            raise ProtocolError(
                f"a round with {context.fraction_bits} fraction bits, but the parties agreed on "
                f"{self.settings.fraction_bits}"
            )
        scaled = self._integer_weights(uploads, weights)
        with self._parties.ledger.measure() as spent:
            vectors, names, refused = self._open(context, uploads)
            if names:
                passed = accepted(self._parties, vectors)
                if not bool(passed.all()):
                    refused |= dict.fromkeys(_chosen(names, ~passed), "norm out of range")
                    vectors, names = vectors[:, passed], _chosen(names, passed)
            if uploads and not names:
                reasons = sorted(set(refused.values()))
                raise ProtocolError(f"none of the {len(uploads)} uploads could be used: {', '.join(reasons)}")
            rows = self._released(self._sum(vectors, [scaled[name] for name in names]))
        return Aggregate(
            rows,
            tuple(names),
            refused,
            sum(scaled[name] for name in names),
            self.settings.bound << FACTOR_BITS,
            self.settings.sum_fraction_bits,
            spent[0],
        )

    def _open(
        self, context: UploadContext, uploads: Mapping[str, Sequence[Envelope]]
    ) -> tuple[Tensor, list[str], dict[str, str]]:
        """The readable and consistent updates as a payload (S, m, d), whose they are, and who was refused. 2 rounds.

        Every share is held by two parties, which compare SHA-256 digests of it: a client that deals them different
        shares could otherwise pass every check with one vector and be added with another. Both hold what they tell each
        other the digest of, so that nothing is revealed.
        """
        parties = self._parties
        count = len(uploads)
        vectors = torch.zeros((parties.shares_here, count, context.dimension), dtype=torch.int64)
        unreadable = torch.zeros((parties.here, count), dtype=torch.int64)
        digests = torch.zeros((2, parties.here, count, _DIGEST_BYTES), dtype=torch.uint8)
        for column, (name, envelopes) in enumerate(uploads.items()):
            parcels = self._unsealed(context, name, envelopes)
            for row, parcel in enumerate(parcels):
                if parcel is None:
                    unreadable[row, column] = 1
                    continue
                digests[0, row, column] = _digest(parcel.first)
                digests[1, row, column] = _digest(parcel.second)
            if all(parcel is not None for parcel in parcels):
                vectors[:, column] = receive(parties, [parcel.expand() for parcel in parcels if parcel is not None])
        neighbours = parties.net.rotate(digests[1], +1, "upload check")
        different = (neighbours != digests[0]).any(-1)
        verdicts = parties.open_rows(unreadable * (PARTIES + 1) + different, "upload check").tolist()
        refused = {
            name: "upload does not open" if verdict > PARTIES else "shares are inconsistent"
            for name, verdict in zip(uploads, verdicts, strict=True)
            if verdict
        }
        usable = [column for column, verdict in enumerate(verdicts) if not verdict]
        names = [name for name in uploads if name not in refused]
        return (vectors[:, usable] if refused else vectors), names, refused

    def _unsealed(self, context: UploadContext, name: str, envelopes: Sequence[Envelope]) -> list[Parcel | None]:
        if len(envelopes) != self._parties.here:
            raise ProtocolError(f"{len(envelopes)} envelopes of one client, expected {self._parties.here}, one a party")
        parcels: list[Parcel | None] = []
        for rank, envelope, key in zip(self._parties.local, envelopes, self._keys, strict=True):
            try:
                parcels.append(unseal(envelope, name, context, rank, key))
            except ProtocolError:
                parcels.append(None)
        return parcels

    def _sum(self, vectors: Tensor, weights: Sequence[int]) -> Tensor:
        """Rows (P, d) of the weighted sum of clipped updates; not masked."""
        parties = self._parties
        if not weights:
            return torch.zeros((parties.here, vectors.shape[-1]), dtype=torch.int64)
        squares = squared_norms(parties, vectors)
        factors = clipping_factors(parties, squares, self.settings.bound)
        return weighted_sum(parties, factors * torch.tensor(weights, dtype=torch.int64), vectors)

    def _released(self, rows: Tensor) -> Tensor:
        """Rows with each local party's own noise, masked so that only the sum of all three says anything."""
        rows = self._parties.zero(rows.shape[1:]).add_(rows)
        if self.settings.noise_multiplier:
            size = rows.shape[1]
            sensitivity = Fraction(self.settings.bound << FACTOR_BITS)
            variance = party_variance(self.settings.noise_multiplier, sensitivity, size, self.settings.mechanism)
            noise = [discrete_gaussian(variance, size, RandomSource()) for _ in self._parties.local]
            rows += torch.from_numpy(np.stack(noise))
        return rows

    def _integer_weights(self, clients: Mapping[str, object], weights: Mapping[str, int] | None) -> dict[str, int]:
        """Weights with which the sum, noise included, stays within the ring; the same at every party."""
        given = {name: 1 if weights is None else weights[name] for name in clients}
        if not all(isinstance(weight, int) and weight > 0 for weight in given.values()):
            raise ConfigError("a client's weight is a positive whole number")
        noise = math.ceil(_NOISE_TAIL * self.settings.noise_multiplier)
        room = (1 << RANGE_BITS) // (self.settings.bound << FACTOR_BITS) - noise
        if room < len(given):
            raise ConfigError(
                f"the sum of {len(given)} updates of norm {self.settings.bound} ring units with a noise multiplier of "
                f"{self.settings.noise_multiplier:g} does not fit the ring: use fewer fraction bits or a smaller clip"
            )
        if len(set(given.values())) <= 1:
            return dict.fromkeys(given, 1)
        if self.settings.noise_multiplier:
            raise PrivacyError("client-level noise is accounted for equal weights: weigh all clients alike")
        total = sum(given.values())
        if total <= room:
            return given
        spare = room - len(given)
        return {name: 1 + weight * spare // total for name, weight in given.items()}


def mean_from_rows(aggregate_rows: Tensor, denominator: float, fraction_bits: int) -> Tensor:
    """The receiver's step: the three rows (3, d) added up and divided by the total weight; float64 (d,)."""
    if tuple(aggregate_rows.shape[:1]) != (PARTIES,) or aggregate_rows.dtype != torch.int64:
        raise ProtocolError(
            f"the rows of {PARTIES} parties are needed, found {aggregate_rows.dtype} {tuple(aggregate_rows.shape)}"
        )
    return aggregate_rows.sum(0).to(torch.float64) * (math.ldexp(1.0, -fraction_bits) / denominator)


def _chosen(names: Sequence[str], flags: Tensor) -> list[str]:
    return [name for name, flag in zip(names, flags.tolist(), strict=True) if flag]


def _digest(half: bytes | Tensor) -> Tensor:
    data = half if isinstance(half, bytes) else half.numpy().tobytes()
    return torch.from_numpy(np.frombuffer(hashlib.sha256(data).digest(), dtype=np.uint8).copy())
