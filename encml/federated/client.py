"""A client of the federation: its data never leave it; an update does, sealed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from torch import Tensor, nn

from encml.errors import DataError
from encml.federated.dpsgd import Loss
from encml.federated.sealing import UploadContext, seal
from encml.federated.training import LocalTraining
from encml.privacy.accounting import Accountant
from encml.privacy.wraparound import NORM_LIMIT
from encml.ring.fixed import encode


class Client:
    """One owner of data.

    inputs (n, ...) float, targets (n, ...): all of its examples, as tensors. ``training``: FedAvg or FedSGD.
    ``loss``: a mean over the batch.
    """

    def __init__(
        self, name: str, inputs: Tensor, targets: Tensor, training: LocalTraining, loss: Loss = F.cross_entropy
    ) -> None:
        if not len(inputs) or len(inputs) != len(targets):
            raise DataError(
                f"client {name}: {len(inputs)} inputs and {len(targets)} targets; as many, at least one, are needed"
            )
        self.name = name
        self.training = training
        self._inputs, self._targets, self._loss = inputs, targets, loss
        privacy = training.privacy
        self.accountant = None if privacy is None else Accountant(privacy.mechanism, privacy.delta)

    def __repr__(self) -> str:
        return f"Client({self.name!r}, {self.examples} examples, {self.training!r})"

    @property
    def examples(self) -> int:
        """How many examples it has; public where updates are weighted by it."""
        return len(self._inputs)

    def upload(self, model: nn.Module, context: UploadContext, keys: Sequence[X25519PublicKey], seed: int) -> bytes:
        """Train on its own data, and seal the update for the three parties.

        Raises InvalidTensor for an update with NaN, infinities or values beyond the fixed-point range.
        """
        result = self.training.run(model, self._inputs, self._targets, self._loss, seed)
        for noise, rate, steps in result.spent:
            if self.accountant is not None:
                self.accountant.step(noise, rate, steps)
        return seal(encode_update(result.update, context.fraction_bits), self.name, context, keys)

    def state_dict(self) -> dict[str, Any]:
        """What it must remember between runs: its accountant. Plain numbers, fit for JSON."""
        return {} if self.accountant is None else {"accountant": self.accountant.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved ``state_dict``. Raises PrivacyError if it is of another guarantee, DataError otherwise."""
        if set(state) != ({"accountant"} if self.accountant is not None else set()):
            raise DataError(f"client {self.name}: a state with {sorted(state)} does not belong to {self.training!r}")
        if self.accountant is not None:
            self.accountant.load_state_dict(state["accountant"])


def encode_update(update: Tensor, fraction_bits: int) -> Tensor:
    """An update (d,) as ring integers, scaled down to the largest norm that the parties accept if it is longer.

    That norm is 60 at 20 fraction bits; the clipping norm of the run, usually far below, is the parties' work.
    """
    values = update.detach().to(torch.float64)
    # Rounding to integers adds sqrt(d)/2 to the norm at most.
    limit = math.ldexp(NORM_LIMIT - math.sqrt(len(values)), -fraction_bits)
    norm = float(values.norm())
    if limit < norm < math.inf:
        values = values * (limit / norm)
    return encode(values, fraction_bits)
