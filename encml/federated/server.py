"""The federated server: it holds the model and carries sealed uploads, and learns nothing but the noisy mean."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from encml.errors import ConfigError, DataError, ProtocolError
from encml.federated.aggregation import UPDATE_FRACTION_BITS, mean_from_rows
from encml.federated.sealing import SESSION_BYTES, Envelope, UploadContext, split
from encml.federated.training import require_federated


@dataclass(frozen=True, slots=True)
class ServerStep:
    """The server's optimizer: stock SGD along the mean update. Learning rate 1 without momentum adds the mean."""

    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.learning_rate < math.inf and 0 <= self.momentum < 1):
            raise ConfigError(
                f"server step with learning rate {self.learning_rate} and momentum {self.momentum}: "
                "a positive number, and one from 0 to below 1, are needed"
            )


class FederatedServer:
    """Model, round number, and the step along the mean of what the clients sent.

    Of the clients it handles names, sealed bytes and their number; of the parties, three rows that mean something only
    added up. Raises UnsupportedOperation for a model that cannot be averaged (buffers, other dtypes).
    """

    def __init__(
        self, model: nn.Module, step: ServerStep | None = None, fraction_bits: int = UPDATE_FRACTION_BITS
    ) -> None:
        self.dimension = require_federated(model)
        self.model = model
        self.round = 0
        self._fraction_bits = fraction_bits
        self._session = os.urandom(SESSION_BYTES)
        self._uploads: dict[str, tuple[Envelope, Envelope, Envelope]] = {}
        settings = step if step is not None else ServerStep()
        self._optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=settings.momentum)

    def __repr__(self) -> str:
        return f"FederatedServer(round={self.round}, dimension={self.dimension})"

    def begin_round(self) -> UploadContext:
        """Start the next round; whatever was uploaded before is dropped. What clients seal their uploads for."""
        self._uploads = {}
        self.round += 1
        return UploadContext(self._session, self.round, self.dimension, self._fraction_bits)

    def receive(self, client: str, upload: bytes) -> None:
        """Take a client's sealed upload. Raises ProtocolError for one of wrong format, or a second one in a round."""
        if client in self._uploads:
            raise ProtocolError(f"client {client} has already uploaded in round {self.round}")
        self._uploads[client] = split(upload, self.dimension)

    def uploads(self) -> dict[str, tuple[Envelope, Envelope, Envelope]]:
        """This round's envelopes for parties 0, 1 and 2, by client."""
        return dict(self._uploads)

    def apply(self, rows: Tensor, weight: float, fraction_bits: int) -> None:
        """Take the optimizer's step along the mean: the rows (3, d) of all parties added up, over ``weight``."""
        mean = mean_from_rows(rows, weight, fraction_bits)
        if mean.shape != (self.dimension,):
            raise ProtocolError(f"rows of {len(mean)} entries for a model of {self.dimension} parameters")
        parameters = list(self.model.parameters())
        for p, part in zip(parameters, torch.split(mean, [p.numel() for p in parameters]), strict=True):
            p.grad = -part.to(p.dtype).view_as(p)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """Model and momentum, by name; copies."""
        found = {f"model.{name}": p.detach().clone() for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            momentum = self._optimizer.state[p].get("momentum_buffer")
            if momentum is not None:
                found[f"momentum.{name}"] = momentum.clone()
        return found

    def load(self, tensors: Mapping[str, Tensor], completed_rounds: int) -> None:
        """Go on from saved ``tensors`` after so many rounds. Raises DataError if they do not fit the model."""
        parameters = dict(self.model.named_parameters())
        wanted = {f"model.{name}" for name in parameters}
        allowed = wanted | {f"momentum.{name}" for name in parameters}
        fits = all(
            name in allowed and tensor.shape == parameters[name.split(".", 1)[1]].shape
            for name, tensor in tensors.items()
        )
        if not (wanted <= set(tensors) and fits and completed_rounds >= 0):
            raise DataError(f"a saved state of {len(tensors)} tensors does not fit this model of {len(parameters)}")
        self.round = completed_rounds
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(tensors[f"model.{name}"])
                momentum = tensors.get(f"momentum.{name}")
                self._optimizer.state[p] = {} if momentum is None else {"momentum_buffer": momentum.clone()}
