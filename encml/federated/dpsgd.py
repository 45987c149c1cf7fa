"""Example-level differential privacy: DP-SGD on one client, by Opacus, with noise and sampling that are safe.

Opacus does the per-example gradients, the bookkeeping and the accounting. Three of its parts are replaced (its own safe
mode needs torchcsprng, which is no longer maintained):

* **Batches** are Poisson samples by AES-CTR, keyed by the operating system, not by torch's generator: amplification by
  sampling holds only against those who cannot predict the sample.
* **Clipping** rounds every clipped gradient towards zero to multiples of max_grad_norm/2^36, with a margin for what
  float32 may have got wrong in the norm, and adds up in float64, which is exact here: each example's contribution is
  an integer vector of norm at most 2^36.
* **Noise** is an exact discrete Gaussian of integers, so that no floating-point artefact of a sampler gives away what
  it was added to (Mironov 2012; Canonne, Kamath, Steinke 2020; encml.privacy.discrete).

What floating point still leaves open: the last bits of an example's gradient may depend on the size of its batch,
through the order in which float32 sums are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from opacus import PrivacyEngine
from opacus.accountants import create_accountant
from opacus.grad_sample import register_grad_sampler
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from encml.errors import ConfigError
from encml.federated.fusion import PooledConv2d
from encml.privacy.checks import Mechanism, check_delta, check_mechanism, check_noise_multiplier
from encml.privacy.discrete import RandomSource, discrete_gaussian
from encml.privacy.distributed import HONEST, party_variance
from encml.ring.kernels.compiling import compiled

GRID_BITS = 36
"""Clipped gradients are integers in units of max_grad_norm/2^36."""

_MAX_BATCH = 2**16  # sums of so many integers below 2^36, and noise, are exact in float64
_FLOAT32_ROUNDING = 2.0**-24
_MAX_SIZE = 2**23  # parameters; the margin for float32 takes half of every gradient then, and would soon take all

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class ExamplePrivacy:
    """DP-SGD: each example's gradient is clipped to L2 norm ``max_grad_norm``, and noise of standard deviation
    ``noise_multiplier`` · ``max_grad_norm`` is added to each batch's sum."""

    noise_multiplier: float
    max_grad_norm: float
    delta: float
    mechanism: Mechanism = "prv"

    def __post_init__(self) -> None:
        check_noise_multiplier(self.noise_multiplier)
        check_delta(self.delta)
        check_mechanism(self.mechanism)
        if not (self.noise_multiplier and 0 < self.max_grad_norm < math.inf):
            raise ConfigError(
                f"DP-SGD with noise multiplier {self.noise_multiplier} and max_grad_norm {self.max_grad_norm}: both "
                "must be positive; leave privacy out for none"
            )


def train_privately(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    *,
    epochs: int,
    batch_size: int,
    privacy: ExamplePrivacy,
) -> list[tuple[float, float, int]]:
    """Train ``model`` in place; returns what was spent, as (noise multiplier, sampling rate, steps).

    An epoch has ceil(n / batch_size) steps, each over a Poisson sample of the n examples with rate 1/steps; ``loss`` is
    a mean over the batch. Every step is taken, also that of an empty sample.
    """
    engine = _Engine(privacy.mechanism)
    private_model, private_optimizer, batches = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(inputs, targets), batch_size=batch_size),
        noise_multiplier=privacy.noise_multiplier,
        max_grad_norm=privacy.max_grad_norm,
    )
    private_model.train()
    for _ in range(epochs):
        for x, y in batches:
            private_optimizer.zero_grad()
            # Opacus's hooks need only what flows between modules: ending at the input spares the batch's own gradient
            # of every parameter, which the optimizer would overwrite.
            into = [x.requires_grad_()] if x.is_floating_point() else None
            torch.autograd.backward(loss(private_model(x), y), inputs=into)
            private_optimizer.step()
    return [(float(noise), float(rate), int(steps)) for noise, rate, steps in engine.accountant.history]


class _Engine(PrivacyEngine):  # type: ignore[misc]
    """Opacus's engine with the parts replaced that this module's text names."""

    def __init__(self, mechanism: Mechanism) -> None:
        # Not the parent's constructor: all that it does beyond this is to warn of the parts replaced here.
        self.mechanism: Mechanism = mechanism
        self.accountant = create_accountant(mechanism=mechanism)
        self.secure_mode = False
        self.secure_rng = None
        self.dataset = None

    def _prepare_data_loader(self, data_loader: Any, **_: Any) -> PoissonBatches:
        return PoissonBatches(data_loader.dataset, len(data_loader))

    def _prepare_optimizer(
        self, *, optimizer: Any, noise_multiplier: float, max_grad_norm: float, expected_batch_size: int, **_: Any
    ) -> ExactOptimizer:
        return ExactOptimizer(
            optimizer,
            self.mechanism,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
        )


class PoissonBatches:
    """``steps`` batches, each holding every example independently with probability 1/steps (2^-64 less at most)."""

    def __init__(self, dataset: TensorDataset, steps: int) -> None:
        self.dataset = dataset
        self._steps = steps
        self._source = RandomSource()

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        last = 2**64 // self._steps - 1
        for _ in range(self._steps):
            chosen = torch.from_numpy(self._source.words(len(self.dataset)) <= last)
            yield tuple(tensor[chosen] for tensor in self.dataset.tensors)


class ExactOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus's optimizer with integer contributions and exact integer noise, fit for the accountant ``mechanism``."""

    def __init__(self, optimizer: torch.optim.Optimizer, mechanism: Mechanism, **settings: Any) -> None:
        super().__init__(optimizer, **settings)
        self.mechanism: Mechanism = mechanism

    def clip_and_accumulate(self) -> None:
        """Sum of the clipped gradients of a batch, in units of max_grad_norm/2^36: ``p.summed_grad``, float64."""
        samples = self.grad_samples
        count, size = len(samples[0]), sum(p.numel() for p in self.params)
        if count > _MAX_BATCH:
            raise ConfigError(f"a DP-SGD batch of {count} examples: at most {_MAX_BATCH} are possible")
        if size > _MAX_SIZE:
            raise ConfigError(f"DP-SGD of {size:,} parameters: clipping in float32 is safe up to {_MAX_SIZE:,}")
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in samples]).norm(dim=0)
        # A float32 sum of ``size`` squares is off by at most its share of size * 2^-24, and the products below by less.
        margin = 1 - (size + 16) * _FLOAT32_ROUNDING
        factors = (math.ldexp(margin, GRID_BITS) / norms.clamp(min=self.max_grad_norm)).float()
        for p, sample in zip(self.params, samples, strict=True):
            total = torch.zeros(p.numel(), dtype=torch.float64)
            _add_integers(sample.flatten(1).contiguous().numpy(), factors.numpy(), total.numpy())
            p.summed_grad = total

    def add_noise(self) -> None:
        """The noisy sum in units of the gradient: ``p.grad``."""
        size = sum(p.numel() for p in self.params)
        # As much as two of the computing parties add, and refused where that could not be accounted for.
        variance = HONEST * party_variance(self.noise_multiplier, Fraction(2**GRID_BITS), size, self.mechanism)
        noise = torch.from_numpy(discrete_gaussian(variance, size, RandomSource()))
        unit = math.ldexp(self.max_grad_norm, -GRID_BITS)
        for p, part in zip(self.params, torch.split(noise, [p.numel() for p in self.params]), strict=True):
            p.grad = ((p.summed_grad + part) * unit).to(p.dtype).view_as(p)


@register_grad_sampler(PooledConv2d)  # type: ignore[untyped-decorator, unused-ignore]
def _pooled_convolution(
    layer: PooledConv2d, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Per-example gradients of a pooled convolution: that of a strided one on the input averaged by shifts."""
    inputs, pool = activations[0], layer.pool
    count = len(inputs)
    if not count:
        return {p: p.new_zeros((0, *p.shape)) for p in layer.parameters()}
    vertical, horizontal = (int(size) for size in layer.padding)
    padded = F.pad(inputs, (horizontal, horizontal, vertical, vertical)).mul_(1 / pool**2)
    columns = F.unfold(_sum_of_shifts(_sum_of_shifts(padded, 2, pool), 3, pool), layer.kernel_size, stride=pool)
    positions = columns.shape[-1]
    columns = columns.reshape(count * layer.groups, -1, positions)
    gradients = backprops.reshape(count * layer.groups, -1, positions)
    weight = torch.bmm(gradients, columns.transpose(1, 2)).view(count, *layer.weight.shape)
    # The parameters of a layer: its weight and, if it has one, its bias.
    return dict(zip(layer.parameters(), (weight, gradients.sum(-1).view(count, -1)), strict=False))


def _sum_of_shifts(x: Tensor, axis: int, count: int) -> Tensor:
    length = x.shape[axis] - count + 1
    total = x.narrow(axis, 0, length) + x.narrow(axis, 1, length) if count > 1 else x
    for shift in range(2, count):
        total += x.narrow(axis, shift, length)
    return total


@compiled
def _add_integers(
    samples: npt.NDArray[np.float32], factors: npt.NDArray[np.float32], total: npt.NDArray[np.float64]
) -> None:
    """total[j] += trunc(samples[i, j] * factors[i]) for all i, in one pass over memory."""
    for i in range(samples.shape[0]):
        for j in range(samples.shape[1]):
            total[j] += np.trunc(np.float64(samples[i, j] * factors[i]))
