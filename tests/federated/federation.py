"""A small federation, and client programs that do as they are told, for the tests in this folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encml.federated import AggregationSettings, Client, ExamplePrivacy, FedAvg, FederatedRunner
from encml.federated.dpsgd import Loss
from encml.federated.training import LocalResult, flat
from encml.mpc.session import Session
from encml.net.local import LocalTransport


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def data(client: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(client)
    x = torch.randn(count, 6, generator=generator)
    return x, x[:, :3].argmax(1)


@dataclass(frozen=True)
class Fixed:
    """A client program that sends what the test says, or fails as the test says."""

    update: Tensor | None = None
    error: BaseException | None = None
    privacy: ExamplePrivacy | None = None

    def run(self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, seed: int) -> LocalResult:
        if self.error is not None:
            raise self.error
        return LocalResult(flat(model) * 0 + 0.01 if self.update is None else self.update)


def clients(count: int, training: Any = None, size: int = 20) -> list[Client]:
    chosen = training if training is not None else FedAvg(0.3, batch_size=8, momentum=0.5)
    return [Client(f"client {i}", *data(i, size + i), chosen) for i in range(count)]


def runner(members: list[Client], **settings: Any) -> FederatedRunner:
    return FederatedRunner(model(), members, session=Session(LocalTransport()), **settings)


def run(federation: FederatedRunner, rounds: int) -> list[Any]:
    return list(federation.run(rounds))


def parameters(federation: FederatedRunner) -> Tensor:
    return flat(federation.model)


D = sum(p.numel() for p in model().parameters())


def saved(federation: FederatedRunner) -> dict[str, Any]:
    """As it comes back from files."""
    state = federation.state_dict()
    return {
        "tensors": {name: tensor.clone() for name, tensor in state["tensors"].items()},
        "values": json.loads(json.dumps(state["values"])),
    }


NOISY = AggregationSettings(clip=1.0, noise_multiplier=1.5)
NAN = torch.full((D,), float("nan"))
