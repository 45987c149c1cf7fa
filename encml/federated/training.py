"""What a client does with the model it is sent: the strategies FedAvg and FedSGD, in plain PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from encml.errors import ConfigError, UnsupportedOperation
from encml.federated.dpsgd import ExamplePrivacy, Loss, train_privately
from encml.federated.fusion import fused

_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What local training gives: the update, flat (d,), and what it spent, as (noise multiplier, rate, steps)."""

    update: Tensor
    spent: tuple[tuple[float, float, int], ...] = ()


class LocalTraining(Protocol):
    """How a client turns the global model and its own data into an update."""

    @property
    def privacy(self) -> ExamplePrivacy | None:
        """Example-level privacy of the training; None: none."""

    def run(self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, seed: int) -> LocalResult:
        """The update for ``model``, which is not changed. ``seed`` sets the order of batches, nothing that protects."""


@dataclass(frozen=True, slots=True)
class FedAvg:
    """Some epochs of SGD; the update is the difference of the weights (McMahan et al. 2017, Algorithm 1).

    Under ``privacy`` the batches are Poisson samples of expected size ``batch_size`` and the training is DP-SGD.
    """

    learning_rate: float
    local_epochs: int = 1
    batch_size: int = 64
    momentum: float = 0.0
    privacy: ExamplePrivacy | None = None

    def __post_init__(self) -> None:
        if not (0 < self.learning_rate < math.inf and 0 <= self.momentum < 1):
            raise ConfigError(
                f"FedAvg with learning rate {self.learning_rate} and momentum {self.momentum}: "
                "a positive number, and one from 0 to below 1, are needed"
            )
        if self.local_epochs < 1 or self.batch_size < 1:
            raise ConfigError(f"FedAvg with {self.local_epochs} epochs of batches of {self.batch_size}: from 1 up")

    def run(self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, seed: int) -> LocalResult:
        """See ``LocalTraining.run``."""
        worker = fused(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        worker.train()
        optimizer = torch.optim.SGD(worker.parameters(), lr=self.learning_rate, momentum=self.momentum)
        spent: list[tuple[float, float, int]] = []
        if self.privacy is None:
            self._train(worker, optimizer, inputs, targets, loss, seed)
        else:
            spent = train_privately(
                worker,
                optimizer,
                inputs,
                targets,
                loss,
                epochs=self.local_epochs,
                batch_size=self.batch_size,
                privacy=self.privacy,
            )
        return LocalResult(flat(worker) - flat(model), tuple(spent))

    def _train(
        self,
        worker: nn.Module,
        optimizer: torch.optim.Optimizer,
        inputs: Tensor,
        targets: Tensor,
        loss: Loss,
        seed: int,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.local_epochs):
            for batch in torch.split(torch.randperm(len(inputs), generator=generator), self.batch_size):
                optimizer.zero_grad()
                torch.autograd.backward(loss(worker(inputs[batch]), targets[batch]))
                optimizer.step()


@dataclass(frozen=True, slots=True)
class FedSGD:
    """One gradient over all of a client's data; the update is its negative (McMahan et al. 2017, section 2)."""

    @property
    def privacy(self) -> None:
        """No example-level privacy: for it, use FedAvg, or client-level noise."""
        return

    def run(self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, seed: int) -> LocalResult:
        """See ``LocalTraining.run``. ``loss`` is a mean over the examples it is given."""
        worker = fused(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        worker.train()
        for x, y in zip(torch.split(inputs, _CHUNK), torch.split(targets, _CHUNK), strict=True):
            torch.autograd.backward(loss(worker(x), y) * (len(x) / len(inputs)))
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in worker.parameters()]
        return LocalResult(-torch.cat([gradient.reshape(-1) for gradient in gradients]))


def flat(model: nn.Module) -> Tensor:
    """All parameters as one vector (d,), a copy, in the order of ``model.parameters()``."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def require_federated(model: nn.Module) -> int:
    """The number d of parameters. Raises UnsupportedOperation for a model whose state is more than its parameters."""
    buffers = [name for name, _ in model.named_buffers()]
    if buffers:
        raise UnsupportedOperation(
            f"federated averaging of buffers ({', '.join(buffers[:3])}, ...) is not supported: running statistics are "
            "no sum of clients' updates; use GroupNorm or LayerNorm in place of BatchNorm"
        )
    if any(p.dtype != torch.float32 or not p.requires_grad for p in model.parameters()):
        raise UnsupportedOperation("federated training of parameters that are not float32 or do not require grad")
    return sum(p.numel() for p in model.parameters())
