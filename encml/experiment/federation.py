"""From an experiment's configuration to the federation that it describes."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from encml.config import ExperimentConfig
from encml.config.experiment import ClientPrivacy, DirichletPartition, FedAvg, NoPrivacy
from encml.config.experiment import ExamplePrivacy as ExampleConfig
from encml.data import MnistData, split_dirichlet, split_iid, to_float
from encml.errors import DataError
from encml.federated.aggregation import AggregationSettings
from encml.federated.client import Client
from encml.federated.dpsgd import ExamplePrivacy, Loss
from encml.federated.runner import ClientSampling, FederatedRunner
from encml.federated.server import ServerStep
from encml.federated.training import FedAvg as FedAvgTraining
from encml.federated.training import FedSGD, LocalResult, LocalTraining
from encml.models import seed_network
from encml.mpc.session import Session
from encml.privacy.accounting import noise_multiplier_for


@dataclass(frozen=True, slots=True)
class Federation:
    """A runner ready to go, the session whose ledger counts for it, and the noise it was given."""

    runner: FederatedRunner
    session: Session
    noise_multiplier: float | None
    expected_clients: int
    """How many clients take part in a round, on average."""


def used_data(config: ExperimentConfig, data: MnistData) -> MnistData:
    """The part of the data that the experiment uses. Raises DataError where there is less than it asks for."""
    found = {"train_images": len(data.train_labels), "test_images": len(data.test_labels)}
    wanted = {"train_images": config.data.train_images, "test_images": config.data.test_images}
    for name, count in wanted.items():
        if count is not None and count > found[name]:
            raise DataError(f"data.{name}: {count:,} wanted, but there are {found[name]:,} ({data.source})")
    if config.data.clients > (wanted["train_images"] or found["train_images"]):
        raise DataError(
            f"data.clients: {config.data.clients:,} clients need at least one training image each, but there are "
            f"{found['train_images']:,} ({data.source})"
        )
    train, test = slice(wanted["train_images"]), slice(wanted["test_images"])
    used = MnistData(
        data.train_images[train], data.train_labels[train], data.test_images[test], data.test_labels[test], data.source
    )
    if config.inference is not None and config.inference.images > len(used.test_labels):
        raise DataError(
            f"inference.images: {config.inference.images:,} wanted, but there are {len(used.test_labels):,} test "
            f"images ({data.source})"
        )
    return used


def initial_model(config: ExperimentConfig) -> nn.Module:
    """The network with the weights that the experiment's seed gives, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return seed_network()


def build(config: ExperimentConfig, data: MnistData, trained: Callable[[], None]) -> Federation:
    """Clients with their parts of ``data``, the server and the three parties, all in this process.

    ``trained`` is called whenever a client has trained, from the client's thread.
    Raises PrivacyError where no noise meets the configured budget.
    """
    federated, privacy = config.federated, config.privacy
    parts = _split(config, data)
    noise = _noise(config, [len(part) for part in parts])
    training = _Watched(_training(config, noise), trained)
    client_level = isinstance(privacy, ClientPrivacy)
    settings = AggregationSettings(
        clip=config.update_bound,
        noise_multiplier=noise if client_level and noise else 0.0,
        mechanism="rdp" if isinstance(privacy, NoPrivacy) else privacy.accountant,
        fraction_bits=config.aggregation.fraction_bits,
    )
    clients = [
        Client(
            f"client-{k:0{len(str(len(parts) - 1))}d}",
            to_float(data.train_images[part]),
            data.train_labels[part],
            training,
        )
        for k, part in enumerate(parts)
    ]
    session = Session()
    runner = FederatedRunner(
        initial_model(config),
        clients,
        aggregation=settings,
        server=ServerStep(federated.server.learning_rate, federated.server.momentum),
        sampling=ClientSampling(federated.clients_per_round, federated.sample_rate),
        weighting=federated.weighting,
        delta=privacy.delta if isinstance(privacy, ClientPrivacy) else None,
        session=session,
        seed=config.seed,
        workers=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
    expected = federated.clients_per_round or round((federated.sample_rate or 1.0) * len(clients))
    return Federation(runner, session, noise, max(1, expected))


class _Watched:
    """Local training that tells when it is done."""

    def __init__(self, training: LocalTraining, trained: Callable[[], None]) -> None:
        self._training, self._trained = training, trained

    @property
    def privacy(self) -> ExamplePrivacy | None:
        return self._training.privacy

    def run(self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, seed: int) -> LocalResult:
        result = self._training.run(model, inputs, targets, loss, seed)
        self._trained()
        return result


class Counter:
    """Counts from several threads and tells each count to ``tell``."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell, self._count, self._lock = tell, 0, threading.Lock()

    def reset(self) -> None:
        """Start again at 0."""
        with self._lock:
            self._count = 0
            self._tell(0)

    def add(self) -> None:
        """One more."""
        with self._lock:
            self._count += 1
            self._tell(self._count)


def _split(config: ExperimentConfig, data: MnistData) -> list[Tensor]:
    partition = config.data.partition
    if isinstance(partition, DirichletPartition):
        return split_dirichlet(data.train_labels, config.data.clients, partition.alpha, config.seed)
    return split_iid(len(data.train_labels), config.data.clients, config.seed)


def _noise(config: ExperimentConfig, sizes: Sequence[int]) -> float | None:
    """The noise multiplier: the configured one, or the smallest with which no client spends more than the budget.

    Under example-level privacy a client is taken to be chosen in every round, which is the most it can spend.
    """
    privacy, federated = config.privacy, config.federated
    if isinstance(privacy, NoPrivacy):
        return None
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    assert privacy.target_epsilon is not None  # the schema asks for exactly one of the two
    plans: set[tuple[float, int]] = set()
    if isinstance(privacy, ClientPrivacy):
        plans = {(federated.sample_rate or 1.0, federated.rounds)}
    elif isinstance(federated, FedAvg):
        for size in set(sizes):
            steps = math.ceil(size / federated.batch_size)
            plans.add((1 / steps, steps * federated.local_epochs * federated.rounds))
    return max(
        noise_multiplier_for(privacy.target_epsilon, privacy.delta, rate, steps, privacy.accountant)
        for rate, steps in plans
    )


def _training(config: ExperimentConfig, noise: float | None) -> LocalTraining:
    federated, privacy = config.federated, config.privacy
    if not isinstance(federated, FedAvg):
        return FedSGD()
    example = None
    if isinstance(privacy, ExampleConfig) and noise is not None:
        example = ExamplePrivacy(noise, privacy.max_grad_norm, privacy.delta, privacy.accountant)
    return FedAvgTraining(
        learning_rate=federated.learning_rate,
        local_epochs=federated.local_epochs,
        batch_size=federated.batch_size,
        momentum=federated.momentum,
        privacy=example,
    )
