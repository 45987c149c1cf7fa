"""A whole federation in one process: clients, server and the three parties, round by round.

For research, tests and the demonstration: the same protocol as between machines, but whoever runs this process could
look at everything in it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from torch import nn

from encml.errors import ConfigError, DataError, PrivacyError, ProtocolError
from encml.federated.aggregation import AggregationSettings, SecureAggregator
from encml.federated.client import Client
from encml.federated.sealing import UploadContext, upload_bytes
from encml.federated.server import FederatedServer, ServerStep
from encml.mpc.session import Session
from encml.net.ledger import Cost
from encml.net.transport import PARTIES
from encml.privacy.accounting import Accountant, PrivacyStatement
from encml.privacy.discrete import RandomSource

Weighting = Literal["uniform", "examples"]


@dataclass(frozen=True, slots=True)
class ClientSampling:
    """Who takes part in a round: all; ``count`` clients, drawn anew; or each with probability ``rate``."""

    count: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.rate is not None:
            raise ConfigError(f"client sampling by count {self.count} and by rate {self.rate}: choose one")
        if self.count is not None and self.count < 1:
            raise ConfigError(f"client sampling: {self.count} clients a round, at least one is needed")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise ConfigError(f"client sampling: rate {self.rate}, allowed above 0 to 1")


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What became known of a round.

    sampled, accepted: clients asked, and those in the mean. failed: the others, each with a reason that tells nothing
        of its data.
    epsilon: spent so far, at the run's delta; None without differential privacy.
    cost: rounds and bytes between the parties. uploaded: bytes from clients. released: bytes from parties to server.
    training_seconds, aggregation_seconds: what took how long.
    """

    round: int
    sampled: tuple[str, ...]
    accepted: tuple[str, ...]
    failed: Mapping[str, str]
    epsilon: float | None
    cost: Cost
    uploaded: int
    released: int
    training_seconds: float
    aggregation_seconds: float


class FederatedRunner:
    """Runs the rounds of a federation in this process.

    model: the global model, changed in place. clients: with distinct names.
    session: an in-process session of its own, or a given one in which all three parties live.
    aggregation: clipping and noise inside the protocol. With noise, the privacy unit is the client: ``delta`` is
        needed, sampling is by rate or of all clients, weighting is uniform, and the mean is over the expected number of
        clients. A rate below 1 lowers epsilon only against those who are not told who took part, so not against the
        server and the parties (see encml.privacy.accounting).
    seed: of what may repeat (the order of batches; the choice of clients where no privacy rests on it).
    workers: clients that train at the same time, on one core each.
    """

    def __init__(
        self,
        model: nn.Module,
        clients: Sequence[Client],
        *,
        aggregation: AggregationSettings | None = None,
        server: ServerStep | None = None,
        sampling: ClientSampling | None = None,
        weighting: Weighting = "uniform",
        delta: float | None = None,
        session: Session | None = None,
        seed: int = 0,
        workers: int = 1,
    ) -> None:
        self._settings = aggregation if aggregation is not None else AggregationSettings()
        self._sampling = sampling if sampling is not None else ClientSampling()
        self._clients = {client.name: client for client in clients}
        self._weighting, self._seed, self._workers = weighting, seed, workers
        self._check(len(clients))
        self._accountant = self._accountant_for(delta)
        self._session = session if session is not None else Session()
        keys = [X25519PrivateKey.generate() for _ in range(PARTIES)]
        self._public_keys = [key.public_key() for key in keys]
        self._aggregator = SecureAggregator(self._session.parties, keys, self._settings)
        self._server = FederatedServer(model, server, self._settings.fraction_bits)

    def __repr__(self) -> str:
        return f"FederatedRunner({len(self._clients)} clients, round={self.round}, {self._settings!r})"

    @property
    def model(self) -> nn.Module:
        """The global model."""
        return self._server.model

    @property
    def round(self) -> int:
        """Rounds completed."""
        return self._server.round

    def run(self, rounds: int) -> Iterator[RoundResult]:
        """Run until ``rounds`` rounds are done in all, those before a resumption included; yields after each.

        Raises ProtocolError if every client of a round failed: nothing is released then, and the model stays.
        """
        while self.round < rounds:
            yield self.step()

    def step(self) -> RoundResult:
        """Run one round. Raises as ``run``."""
        completed = self.round
        try:
            return self._step()
        except BaseException:
            self._server.round = completed  # the round did not happen, and may be tried again
            raise

    def privacy(self) -> PrivacyStatement:
        """What has been spent so far, and what it protects. Up to seconds with the accountant "prv"."""
        if self._accountant is not None:
            sampled = self._sampling.rate is not None and self._sampling.rate < 1
            return PrivacyStatement("client", self._accountant.epsilon(), self._accountant.delta, sampled)
        accountants = [client.accountant for client in self._clients.values()]
        found = [accountant for accountant in accountants if accountant is not None]
        if not found or len(found) < len(accountants):
            return PrivacyStatement("none")
        epsilon = max(accountant.epsilon() for accountant in _largest(found))
        return PrivacyStatement("example", epsilon, max(accountant.delta for accountant in found), True)

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on: {"tensors": {name: Tensor}, "values": plain data fit for JSON}."""
        values = {
            "round": self.round,
            "seed": self._seed,
            "accountant": None if self._accountant is None else self._accountant.state_dict(),
            "clients": {name: client.state_dict() for name, client in self._clients.items()},
        }
        return {"tensors": self._server.tensors(), "values": values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved ``state_dict``, in a runner made alike. Raises DataError or PrivacyError if it is not."""
        if set(state) != {"tensors", "values"} or set(state["values"]) != {"round", "seed", "accountant", "clients"}:
            raise DataError("not a federation's saved state: expected tensors and values, as state_dict gives them")
        values = state["values"]
        if values["seed"] != self._seed or set(values["clients"]) != set(self._clients):
            raise DataError(
                f"a saved state with seed {values['seed']} and {len(values['clients'])} clients does not belong to "
                f"this federation with seed {self._seed} and {len(self._clients)} clients"
            )
        if (values["accountant"] is None) != (self._accountant is None):
            raise PrivacyError("a saved state and this federation do not agree on whether noise protects clients")
        if self._accountant is not None:
            self._accountant.load_state_dict(values["accountant"])
        for name, client in self._clients.items():
            client.load_state_dict(values["clients"][name])
        self._server.load(state["tensors"], values["round"])

    # One round -----------------------------------------------------------------------------------------------

    def _step(self) -> RoundResult:
        context = self._server.begin_round()
        sampled = self._sample(context.round)
        start = time.perf_counter()
        failed = self._train(context, sampled)
        trained = time.perf_counter()
        uploads = self._server.uploads()
        if sampled and not uploads:
            reasons = ", ".join(sorted(set(failed.values())))
            raise ProtocolError(f"round {context.round}: all {len(sampled)} clients failed ({reasons})")
        accepted: tuple[str, ...] = ()
        cost, released = Cost(), 0
        if uploads or self._settings.noise_multiplier:
            weights = {name: self._weight(name) for name in uploads}
            aggregate = self._aggregator.aggregate(context, uploads, weights)
            if self._accountant is not None:
                self._accountant.step(self._settings.noise_multiplier, self._rate)
            weight = self._rate * len(self._clients) if self._settings.noise_multiplier else aggregate.weight
            self._server.apply(aggregate.rows, weight, aggregate.fraction_bits)
            accepted, cost, released = aggregate.accepted, aggregate.cost, aggregate.rows.nbytes
            failed |= aggregate.refused
        finished = time.perf_counter()
        statement = self.privacy()
        return RoundResult(
            context.round,
            tuple(sampled),
            accepted,
            failed,
            None if statement.unit == "none" else statement.epsilon,
            cost,
            len(uploads) * upload_bytes(context.dimension),
            released,
            trained - start,
            finished - trained,
        )

    def _train(self, context: UploadContext, names: Sequence[str]) -> dict[str, str]:
        """Have the clients train and upload; those that failed, and why."""
        failed: dict[str, str] = {}
        with _threads(self._workers) as pool:
            pending = [pool.submit(self._upload, name, context) for name in names]
            for name, upload in zip(names, pending, strict=True):
                # A client is somebody else's program: whatever goes wrong in it must not stop the others. Its message
                # is left out, since it may hold values of the client's data.
                error = upload.exception()
                if error is None:
                    self._server.receive(name, upload.result())
                elif isinstance(error, Exception):
                    failed[name] = f"training failed: {type(error).__name__}"
                else:
                    raise error
        return failed

    def _upload(self, name: str, context: UploadContext) -> bytes:
        seed = _seed(self._seed, "batches", name, context.round)
        return self._clients[name].upload(self.model, context, self._public_keys, seed)

    def _sample(self, round_number: int) -> list[str]:
        names = list(self._clients)
        if self._sampling.count is not None:
            generator = torch.Generator().manual_seed(_seed(self._seed, "clients", round_number))
            chosen = torch.randperm(len(names), generator=generator)[: self._sampling.count].sort().values
            return [names[i] for i in chosen.tolist()]
        if self._rate == 1:
            return names
        # Secret, and so not from the seed: amplification by sampling holds against those who cannot predict it.
        limit = int(self._rate * 2**64)
        return [name for name, word in zip(names, RandomSource().words(len(names)), strict=True) if int(word) < limit]

    @property
    def _rate(self) -> float:
        return 1.0 if self._sampling.rate is None else self._sampling.rate

    def _weight(self, name: str) -> int:
        return self._clients[name].examples if self._weighting == "examples" else 1

    # Settings ------------------------------------------------------------------------------------------------

    def _check(self, clients: int) -> None:
        if not clients or len(self._clients) != clients:
            raise ConfigError(
                f"a federation needs clients with distinct names, found {clients}: {len(self._clients)} names"
            )
        if self._weighting not in get_args(Weighting):
            raise ConfigError(f"weighting {self._weighting!r}: allowed are {', '.join(get_args(Weighting))}")
        if self._sampling.count is not None and self._sampling.count > clients:
            raise ConfigError(f"{self._sampling.count} clients a round cannot be drawn from {clients}")
        if self._workers < 1:
            raise ConfigError(f"workers: found {self._workers}, at least 1 is needed")

    def _accountant_for(self, delta: float | None) -> Accountant | None:
        if not self._settings.noise_multiplier:
            if delta is not None:
                raise PrivacyError(f"delta {delta} without noise: nothing would be guaranteed; give a noise multiplier")
            return None
        if delta is None:
            raise PrivacyError("client-level noise is accounted for at a delta: give one")
        if self._sampling.count is not None:
            raise PrivacyError("client-level noise is accounted for Poisson sampling: give a rate instead of a count")
        if self._weighting != "uniform":
            raise PrivacyError("client-level noise is accounted for equal weights: weighting must be uniform")
        return Accountant(self._settings.mechanism, delta)


def _seed(*parts: object) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _largest(accountants: Sequence[Accountant]) -> list[Accountant]:
    """Those among which the largest epsilon is: without any that another one outdoes in steps of every kind."""
    kept: list[tuple[dict[tuple[float, float], int], Accountant]] = []
    for accountant in sorted(accountants, key=lambda a: -a.steps):
        steps = {(noise, rate): count for noise, rate, count in accountant.state_dict()["steps"]}
        if not any(all(other.get(kind, 0) >= count for kind, count in steps.items()) for other, _ in kept):
            kept.append((steps, accountant))
    return [accountant for _, accountant in kept]


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool for clients; with more than one, each operation of PyTorch keeps to one core meanwhile."""
    before = torch.get_num_threads()
    if workers > 1:
        torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encml-client")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
