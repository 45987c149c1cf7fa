"""Norms that PyTorch would take apart above its operators, at more rounds and with an eps that fixed point loses.

RMS norm; and what divides vectors by their length: normalize, cosine similarity, weight norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.tensor.functions.common import differentiable_once, transformed
from encml.tensor.handlers import layernorms, vectors
from encml.tensor.handlers.common import session_of
from encml.tensor.shared import SharedTensor


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, normalized: tuple[int, ...], eps: float | None) -> Tensor:
        session = session_of(*(t for t in (x, weight) if t is not None))
        with session.whole(), session.ledger.operation("rms_norm"):
            output, deviation = layernorms.rms_norm(x, normalized, weight, eps)
        ctx.save_for_backward(x, weight, deviation)
        ctx.normalized = normalized
        return output

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: SharedTensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, deviation = ctx.saved_tensors
        session, mask = gradient.session, ctx.needs_input_grad[:2]
        with session.whole(), session.ledger.operation("rms_norm_backward"):
            to_x, to_weight = layernorms.rms_norm_backward(gradient, x, ctx.normalized, deviation, weight, mask)
        return to_x, to_weight, None, None


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """F.rms_norm: 35 rounds, 9.4 B a party and element and once more when settled. See ``layernorms.normalise``."""
    if transformed():
        with torch._C.DisableTorchFunctionSubclass():
            return F.rms_norm(input, list(normalized_shape), weight, eps)
    result: Tensor = _RmsNorm.apply(input, weight, tuple(normalized_shape), eps)  # type: ignore[no-untyped-call]
    return result


class _Unit(torch.autograd.Function):
    """Vectors along the last dimension divided by their length."""

    @staticmethod
    def forward(ctx: Any, x: SharedTensor) -> Tensor:
        with x.session.whole(), x.session.ledger.operation("normalize"):
            output, deviation = layernorms.unit_vectors(x)
        ctx.save_for_backward(x, deviation)
        return output

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: SharedTensor) -> Tensor:
        x, deviation = ctx.saved_tensors
        with x.session.whole(), x.session.ledger.operation("normalize_backward"):
            return layernorms.unit_vectors_backward(gradient, x, deviation)


def normalize(
    input: SharedTensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """F.normalize. For p = 2: 33 rounds and 9.4 B a party and element; vectors shorter than 2^-13 of the square root of
    their number of elements come out shorter than 1."""
    if out is not None:
        with torch.no_grad():
            return out.copy_(normalize(input, p, dim, eps))
    if p != 2:
        with torch._C.DisableTorchFunctionSubclass():
            return F.normalize(input, p, dim, eps)
    return _unit(input, dim)


def _unit(x: Tensor, dim: int) -> Tensor:
    if not isinstance(x, SharedTensor) or transformed():
        with torch._C.DisableTorchFunctionSubclass():
            return F.normalize(x, dim=dim)
    if x.ndim == 0 or x.shape[dim] == 1:
        return x.sign()
    turned: Tensor = _Unit.apply(x.movedim(dim, -1))  # type: ignore[no-untyped-call]
    return turned.movedim(-1, dim)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """F.cosine_similarity: both vectors are divided by their lengths, then multiplied. Rounds as ``normalize``."""
    if not x1.ndim and not x2.ndim:
        return cosine_similarity(x1[None], x2[None], 0, eps)[()]
    if x1.shape != x2.shape:
        x1, x2 = torch.broadcast_tensors(x1, x2)  # type: ignore[no-untyped-call]
    if isinstance(x1, SharedTensor) and isinstance(x2, SharedTensor):
        first, second = _unit(torch.stack([x1, x2]), dim + 1 if dim >= 0 else dim).unbind(0)
    else:
        first, second = _unit(x1, dim), _unit(x2, dim)
    return (first * second).sum(dim)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """torch._weight_norm, of torch.nn.utils.parametrizations.weight_norm: v g / |v|, a norm an index of ``dim``."""
    if dim == -1:
        return _unit(v.reshape(-1), 0).view(v.shape) * g
    turned = v.movedim(dim, 0)
    flat = _unit(turned.reshape(len(turned), math.prod(turned.shape[1:])), 1)
    return flat.view(turned.shape).movedim(0, dim) * g


class _Length(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: SharedTensor, dims: int | tuple[int, ...] | None, keepdim: bool) -> Tensor:
        with x.session.whole(), x.session.ledger.operation("vector_norm"):
            found, ctx.inverse = vectors.length(x, dims, keepdim, inverse=ctx.needs_input_grad[0])
        ctx.save_for_backward(x)
        ctx.dims, ctx.keepdim = dims, keepdim
        return found

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: SharedTensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        with x.session.whole(), x.session.ledger.operation("vector_norm_backward"):
            return vectors.length_backward(gradient, x, ctx.inverse, ctx.dims, ctx.keepdim), None, None


def _length(x: SharedTensor, dims: Any, keepdim: bool) -> Tensor:
    """The Euclidean length: 30 rounds, 0.2 kB a party and result, twice the bytes where a gradient may be asked for.

    That takes 3 rounds and a pending product an element.
    """
    chosen = dims if dims is None or isinstance(dims, int) else tuple(dims) or None
    result: Tensor = _Length.apply(x, chosen, keepdim)  # type: ignore[no-untyped-call]
    return result


def _by_length(function: Callable[..., Tensor], ours: Callable[..., Any]) -> Callable[..., Tensor]:
    """Our norm for order 2 and others above 1, where ``ours`` of the arguments gives (x, order, dims, keepdim).

    Else ``function``. PyTorch's derivatives of those would divide by powers of the norm that fixed point does not hold.
    """

    def norm(*args: Any, **kwargs: Any) -> Tensor:
        x, order, dims, keepdim = ours(*args, **kwargs) or (None, None, None, False)
        if isinstance(x, SharedTensor) and order == 2 and not transformed():
            return _length(x, dims, keepdim)
        if isinstance(x, SharedTensor) and isinstance(order, int | float) and 1 < order < math.inf:
            return vectors.by_largest(x, order, dims, keepdim)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    return norm


def _of_vectors(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, **others: Any) -> Any:
    return None if others else (x, ord, dim, keepdim)


def _of_any(
    input: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, out: Any = None, dtype: Any = None
) -> Any:
    return (input, 2 if p in (None, "fro") else p, dim, keepdim) if out is None and dtype is None else None


def _of_tensors(A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, **others: Any) -> Any:
    return (A, 2, dim, keepdim) if ord is None and not others else None


def _of_distances(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    return x1 - x2 + eps, p, -1, keepdim


def _of_differences(input: Tensor, other: Tensor, p: float = 2) -> Any:
    return input - other, p, None, False


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """torch.cdist by differences: by products of matrices, which it may use else, small distances lose their digits."""
    with torch._C.DisableTorchFunctionSubclass():
        return torch.cdist(x1, x2, p, "donot_use_mm_for_euclid_dist")


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
    F.normalize: normalize,
    F.cosine_similarity: cosine_similarity,
    torch._weight_norm: weight_norm,
    torch.linalg.vector_norm: _by_length(torch.linalg.vector_norm, _of_vectors),
    torch.linalg.norm: _by_length(torch.linalg.norm, _of_tensors),
    torch.norm: _by_length(torch.norm, _of_any),
    torch.Tensor.norm: _by_length(torch.Tensor.norm, lambda x, *args, **kwargs: _of_any(x, *args, **kwargs)),
    F.pairwise_distance: _by_length(F.pairwise_distance, _of_distances),
    torch.dist: _by_length(torch.dist, _of_differences),
    torch.cdist: cdist,
}
