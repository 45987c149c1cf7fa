"""The layers whose per-example gradients are had from activations and errors: linear and two-dimensional convolution.

A layer's gradient is a sum over its places t of outer products e_t (x) a_t, in each of its groups G: ``rows`` gives the
errors as (..., G, T, outputs), ``columns`` the activations as (..., G, T, inputs), whatever leading axes there are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from encml.errors import PrivacyError
from encml.ring import kernels


class Layer(ABC):
    """What clipping needs to know of a module. ``size``: how many parameters; ``overlap``: in how many places of a
    window an activation is seen, at most."""

    groups = 1
    overlap = 1
    least_dims = 2

    def __init__(self, name: str, module: nn.Linear | nn.Conv2d) -> None:
        self.name = name
        if not module.weight.requires_grad:
            raise PrivacyError(f"{name}: its bias is trained and its weight is not; freeze both, or neither")
        self.parameters = [p for p in (module.weight, module.bias) if p is not None and p.requires_grad]
        self.bias = len(self.parameters) == 2
        self.size = sum(p.numel() for p in self.parameters)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    @abstractmethod
    def places(self, output: Sequence[int]) -> int:
        """T, for an example's output of this shape."""

    @abstractmethod
    def columns(self, activations: Tensor) -> Tensor:
        """Activations (S, N, *in) as (S, N, G, T, inputs)."""

    @abstractmethod
    def rows(self, errors: Tensor) -> Tensor:
        """Errors (S, N, *out) as (S, N, G, T, outputs)."""

    @abstractmethod
    def weight_sum(self, activations: Tensor, errors: Tensor) -> Tensor:
        """The gradient of the weight, summed over the batch: of (N, *in) and (N, *out), linear in each."""


class LinearLayer(Layer):
    """nn.Linear on (N, in) or (N, *places, in)."""

    def places(self, output: Sequence[int]) -> int:
        """See ``Layer``."""
        return math.prod(output[:-1])

    def columns(self, activations: Tensor) -> Tensor:
        """See ``Layer``."""
        return activations.reshape(*activations.shape[:2], 1, -1, activations.shape[-1])

    def rows(self, errors: Tensor) -> Tensor:
        """See ``Layer``."""
        return self.columns(errors)

    def weight_sum(self, activations: Tensor, errors: Tensor) -> Tensor:
        """See ``Layer``."""
        return kernels.matmul(errors.reshape(-1, errors.shape[-1]).t(), activations.reshape(-1, activations.shape[-1]))


class ConvolutionLayer(Layer):
    """nn.Conv2d on (N, C, H, W), with zeros around."""

    least_dims = 4

    def __init__(self, name: str, module: nn.Conv2d) -> None:
        super().__init__(name, module)
        if module.padding_mode != "zeros" or module.padding == "same":
            raise PrivacyError(
                f"{name}: a convolution with padding {module.padding!r}, {module.padding_mode!r}; per-example clipping "
                "supports zeros, given as numbers"
            )
        self.groups = module.groups
        self.kernel, self.stride, self.dilation = list(module.kernel_size), list(module.stride), list(module.dilation)
        self.padding = [0, 0] if isinstance(module.padding, str) else [int(p) for p in module.padding]
        seen = [k if d > 1 else -(-k // s) for k, s, d in zip(self.kernel, self.stride, self.dilation, strict=True)]
        self.overlap = math.prod(seen)

    def places(self, output: Sequence[int]) -> int:
        """See ``Layer``."""
        return math.prod(output[1:])

    def columns(self, activations: Tensor) -> Tensor:
        """See ``Layer``."""
        shares, count, channels = activations.shape[:3]
        output = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                activations.shape[3:], self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        ]
        seen = kernels.unfold(activations, self.kernel, self.stride, self.padding, self.dilation, output)
        windows = seen.reshape(shares, count, self.groups, channels // self.groups * math.prod(self.kernel), -1)
        return windows.transpose(-1, -2)

    def rows(self, errors: Tensor) -> Tensor:
        """See ``Layer``."""
        shares, count, channels = errors.shape[:3]
        return errors.reshape(shares, count, self.groups, channels // self.groups, -1).transpose(-1, -2)

    def weight_sum(self, activations: Tensor, errors: Tensor) -> Tensor:
        """See ``Layer``."""
        return kernels.weight_gradient(
            activations, errors, self.kernel, self.stride, self.padding, self.dilation, self.groups
        )


def layers_of(model: nn.Module) -> list[tuple[nn.Module, Layer]]:
    """The modules of a model that are trained, in order, with what clipping needs to know of each.

    Raises PrivacyError, which names the module, for trained parameters elsewhere than in linear and convolution layers,
    for those that several modules share, and for modules that mix the examples of a batch.
    """
    found: list[tuple[nn.Module, Layer]] = []
    owners: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        named = name or "the model itself"
        _refuse_mixing(named, module)
        trained = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        for key, p in trained.items():
            if owners.setdefault(p, named) != named:
                raise PrivacyError(f"{named} and {owners[p]} share {key}: clipping supports one use of each parameter")
        if not trained:
            continue
        if type(module) is nn.Linear:
            found.append((module, LinearLayer(named, module)))
        elif type(module) is nn.Conv2d:
            found.append((module, ConvolutionLayer(named, module)))
        else:
            raise PrivacyError(
                f"{named} ({type(module).__name__}) has trained parameters ({', '.join(trained)}): gradients of single "
                "examples are clipped in Linear and Conv2d only; freeze it with requires_grad_(False), or give it none "
                "(elementwise_affine=False, affine=False)"
            )
    if not found:
        raise PrivacyError("the model has no trained Linear or Conv2d: there is nothing to make private")
    return found


def _refuse_mixing(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm) or (
        isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats
    ):
        raise PrivacyError(
            f"{name}: {type(module).__name__} mixes the examples of a batch, so that one changes the gradients of all, "
            "and nothing bounds by how much; use GroupNorm or LayerNorm without affine parameters"
        )
