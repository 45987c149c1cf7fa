"""Losses that are cheaper as a whole than as the operators that PyTorch takes them apart into, or cannot be else.

Cross-entropy, by public or secret classes or probabilities t with weights: with p the softmax of x and r the sum of a
row of t,

    loss = -sum t (x - max - log(sum of exp)),    gradient = r p - t.

One softmax gives both, its logarithm in the rounds of its division; and where the gradient that comes in is the 1 of
``loss.backward()`` nothing is multiplied but p itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction as legacy

from encml.errors import InvalidTensor, UnsupportedOperation
from encml.tensor.functions.common import differentiable_once
from encml.tensor.handlers import attention, lookup
from encml.tensor.handlers.arithmetic import mul, scale, sub
from encml.tensor.handlers.common import wrap
from encml.tensor.handlers.linear import sum_all, sum_dims
from encml.tensor.handlers.losses import class_weights
from encml.tensor.handlers.moments import by, known_at, plus
from encml.tensor.shared import SharedTensor, secret

_IGNORE = -100
_SMOOTHING_BITS = 4


@dataclass(frozen=True, slots=True)
class _Target:
    """What a cross-entropy sums the negative log-probabilities with.

    weights: for every class at every place, public or secret; or the protocol that finds them. rows: their sums over
    the classes; None where all are 1. count: what a mean divides by, public or secret.
    """

    weights: Tensor | Callable[[], Tensor]
    rows: Tensor | None
    count: float | Tensor

    def found(self) -> Tensor:
        """The weights."""
        return self.weights if isinstance(self.weights, Tensor) else self.weights()

    @property
    def whole(self) -> bool:
        """Whether _CrossEntropy takes it: nothing to be differentiated, a public count."""
        differentiable = isinstance(self.weights, Tensor) and self.weights.requires_grad
        return not differentiable and not isinstance(self.count, Tensor)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: SharedTensor, target: _Target, reduction: str) -> Tensor:
        dim, session = _class_dim(x), x.session
        with session.whole(), session.ledger.operation("cross_entropy"):
            logs, weights = session.parties.together(lambda: attention.log_softmax(x, dim), target.found)
            losses = sum_dims(_weighted(_negative(logs), weights), (dim,))
            if reduction != "none":
                losses = sum_all(losses)
            if reduction == "mean":
                losses = _divided(losses, float(target.count))
        ctx.save_for_backward(logs, weights, target.rows)
        ctx.count, ctx.reduction = target.count, reduction
        return losses

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: SharedTensor) -> tuple[Tensor | None, ...]:
        logs, weights, rows = ctx.saved_tensors
        dim = _class_dim(logs)
        with logs.session.whole(), logs.session.ledger.operation("cross_entropy_backward"):
            slope = attention.softmax_of(logs, dim)
            slope = sub(slope if rows is None else mul(slope, rows.to(slope.dtype)), weights)
            known = secret(gradient).fact("constant")
            if known is None:
                slope = mul(slope, gradient.unsqueeze(dim) if ctx.reduction == "none" else gradient)
            elif known != 1:
                slope = wrap(scale(secret(slope), known), slope.dtype)
            if ctx.reduction == "mean":
                slope = _divided(slope, ctx.count)
        return slope, None, None


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = _IGNORE,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """F.cross_entropy with public or secret targets: classes, or probabilities of the input's shape.

    52 rounds and 2.6 kB a party and row of ten classes, backward included, and 3 more with secret probabilities. Secret
    classes cost a look-up each (see ``encml.tensor.handlers.lookup``); each must be one, for nobody would see it else.
    """
    reduction = _reduction(size_average, reduce, reduction)
    dim = _class_dim(input)
    probabilities = target.shape == input.shape and target.dtype.is_floating_point
    if not probabilities and target.shape != (*input.shape[:dim], *input.shape[dim + 1 :]):
        raise InvalidTensor(
            f"cross_entropy: a target of shape {tuple(target.shape)} for an input of shape {tuple(input.shape)}: "
            "expected one class for each row, or probabilities of the input's shape"
        )
    if probabilities:
        asked = _of_probabilities(input, target, weight, label_smoothing)
    elif isinstance(target, SharedTensor):
        asked = _of_secret_classes(input, target, weight, ignore_index, label_smoothing)
    else:
        asked = _of_public_classes(input, target, weight, ignore_index, label_smoothing)
    if isinstance(input, SharedTensor) and asked.whole:
        result: Tensor = _CrossEntropy.apply(input, asked, reduction)  # type: ignore[no-untyped-call]
        return result
    losses = -(F.log_softmax(input, dim) * asked.found()).sum(dim)
    return _reduced(losses, reduction, asked.count)


def _reduced(losses: Tensor, reduction: str, count: float | Tensor) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() / count if reduction == "mean" else losses.sum()


def _of_public_classes(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float
) -> _Target:
    dim = _class_dim(input)
    if isinstance(weight, SharedTensor):
        return _of_secret_weights(input, target, weight, ignore_index, smoothing)
    weights, count = class_weights(target, input, weight, ignore_index, dim)
    if not count:
        raise UnsupportedOperation("cross_entropy: all targets are ignored, a mean over them would be NaN")
    if smoothing:
        kept = (target != ignore_index).unsqueeze(dim)
        weights = (1 - smoothing) * weights + smoothing / input.shape[dim] * _per_class(weight, input) * kept
    return _public(weights, input, count)


def _of_secret_weights(
    input: Tensor, target: Tensor, weight: SharedTensor, ignore_index: int, smoothing: float
) -> _Target:
    """Public classes whose weights are secret."""
    dim = _class_dim(input)
    rows, _ = class_weights(target, input, None, ignore_index, dim)
    each = _per_class(weight, input)
    weights: Tensor = each * rows
    count = weights.sum()
    if smoothing:
        kept = (target != ignore_index).unsqueeze(dim)
        weights = (1 - smoothing) * weights + each * (smoothing / input.shape[dim] * kept)
    return _Target(weights, weights.sum(dim, keepdim=True), count)


def _public(weights: Tensor, input: Tensor, count: float) -> _Target:
    """Rows that add up to 1, but for less than a quarter of a unit, are taken to do so."""
    rows = weights.sum(_class_dim(input), keepdim=True)
    if isinstance(input, SharedTensor) and bool(((rows - 1).abs() < 2.0 ** -(input.session.fraction_bits + 2)).all()):
        return _Target(weights.to(input.dtype), None, count)
    return _Target(weights.to(input.dtype), rows, count)


def _of_secret_classes(
    input: Tensor, target: SharedTensor, weight: Tensor | None, ignore_index: int, smoothing: float
) -> _Target:
    dim = _class_dim(input)
    classes = input.shape[dim]
    if 0 <= ignore_index < classes:
        raise UnsupportedOperation(
            f"ignore_index={ignore_index} with secret classes: nobody sees how many are ignored; give secret one-hot "
            "rows, all 0 where ignored, and divide by a public number"
        )

    def found() -> SharedTensor:
        rows = one_hot(target, classes, dim, input.dtype)
        if not smoothing:
            return rows
        fine = target.session.fraction_bits + _SMOOTHING_BITS
        smoothed = plus(by(secret(rows), 1 - smoothing, fine), known_at(target.session, smoothing / classes, fine))
        return wrap(smoothed, rows.dtype)

    if weight is None:
        return _Target(found, None, float(target.numel()))
    each = _per_class(weight, input)
    weights = one_hot(target, classes, dim, input.dtype) * each
    count = weights.sum()
    if smoothing:
        weights = (1 - smoothing) * weights + smoothing / classes * each
    return _Target(weights, weights.sum(dim, keepdim=True), count)


def _of_probabilities(input: Tensor, target: Tensor, weight: Tensor | None, smoothing: float) -> _Target:
    dim = _class_dim(input)
    weights = target
    if smoothing:
        weights = weights * (1 - smoothing) + smoothing / input.shape[dim]
    if weight is not None:
        weights = weights * _per_class(weight, input)
    count = input.numel() / input.shape[dim]
    if not isinstance(weights, SharedTensor):
        return _public(weights.detach().double(), input, count)
    return _Target(weights, weights.sum(dim, keepdim=True), count)


def one_hot(target: SharedTensor, classes: int, dim: int, dtype: torch.dtype) -> SharedTensor:
    """Rows of a 1 and zeros for secret classes, along dimension ``dim``."""
    rows = secret(lookup.one_hot_rows(target, classes, dtype))
    return wrap(rows.linear(lambda terms: terms.view(len(terms), classes, *target.shape).movedim(1, dim + 1)), dtype)


def _per_class(weight: Tensor | None, input: Tensor) -> Tensor:
    """Class weights, 1 if there are none, as they meet the input."""
    dim = _class_dim(input)
    if weight is None:
        return torch.ones((), dtype=torch.float64)
    return weight.view(-1, *(1,) * (input.ndim - dim - 1))


def _class_dim(x: Tensor) -> int:
    return 1 if x.ndim > 1 else 0


def _weighted(x: SharedTensor, weights: Tensor) -> SharedTensor:
    """x * weights; public fractions, as label smoothing has them, with more bits than other factors."""
    if isinstance(weights, SharedTensor) or bool((weights == weights.round()).all()):
        return mul(x, weights)
    return wrap(by(secret(x), weights, x.session.fraction_bits + _SMOOTHING_BITS), x.dtype)


def _negative(x: SharedTensor) -> SharedTensor:
    return wrap(secret(x).linear(torch.neg), x.dtype)


def _divided(x: SharedTensor, count: float) -> SharedTensor:
    return x if count == 1 else wrap(scale(secret(x), 1.0 / count), x.dtype)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = _IGNORE,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """F.nll_loss; secret classes and class weights as in ``cross_entropy``."""
    if not isinstance(target, SharedTensor) and not isinstance(weight, SharedTensor):
        with torch._C.DisableTorchFunctionSubclass():
            return F.nll_loss(input, target, weight, size_average, ignore_index, reduce, reduction)
    reduction = _reduction(size_average, reduce, reduction)
    of = _of_secret_classes if isinstance(target, SharedTensor) else _of_public_classes
    asked = of(input, target, weight, ignore_index, 0.0)  # type: ignore[arg-type]  # as the line above says
    return _reduced(-(input * asked.found()).sum(_class_dim(input)), reduction, asked.count)


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """F.gaussian_nll_loss; that no variance is negative is not looked at. ``eps`` is rounded up to a unit."""
    if isinstance(var, float):
        var = torch.full_like(input, var)
    if var.ndim == input.ndim - 1 and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    unit = 2.0 ** -next(t for t in (input, target, var) if isinstance(t, SharedTensor)).session.fraction_bits
    held = var.detach()
    clamped = var + (held.clamp(min=max(eps, unit)) - held)
    losses = 0.5 * (torch.log(clamped) + (input - target) ** 2 / clamped)
    if full:
        losses = losses + 0.9189385332046727
    return _reduced(losses, reduction, losses.numel())


def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """F.cosine_embedding_loss, by ``cosine_similarity``: 1 - c where the target is 1, max(c - margin, 0) where -1."""
    cosines = F.cosine_similarity(input1, input2, input1.ndim - 1)
    alike = (target == 1).to(cosines.dtype)
    losses = alike * (1 - cosines) + (1 - alike) * (cosines - margin).relu()
    return _reduced(losses, _reduction(size_average, reduce, reduction), losses.numel())


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """F.triplet_margin_loss, with all distances in the same rounds."""
    three = list(torch.broadcast_tensors(anchor, positive, negative))  # type: ignore[no-untyped-call]
    firsts, seconds = [three[0], three[0], three[1]], [three[1], three[2], three[2]]
    count = 3 if swap else 2
    distances = F.pairwise_distance(torch.stack(firsts[:count]), torch.stack(seconds[:count]), p, eps)
    near, far, *others = distances.unbind(0)
    for other in others:
        far = torch.minimum(far, other)
    losses = (margin + near - far).relu()
    return _reduced(losses, _reduction(size_average, reduce, reduction), losses.numel())


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """F.multi_margin_loss with public classes: max(0, margin - x_t + x_i)^p over the others, by all."""
    if input.ndim < 2:
        input, target = input.reshape(-1), target.reshape(())
    dim, classes = _class_dim(input), input.shape[-1]
    index = target.unsqueeze(dim)
    slack = (margin - input.gather(dim, index) + input).relu()
    others = torch.ones(input.shape, dtype=input.dtype).scatter_(dim, index, 0)
    if weight is not None:
        others = others * weight[index]
    losses = ((slack if p == 1 else slack**p) * (others / classes)).sum(dim)
    return _reduced(losses, _reduction(size_average, reduce, reduction), losses.numel())


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """F.multilabel_margin_loss with public classes: max(0, 1 - x_j + x_i), j named before a -1, i not."""
    if not input.ndim:
        input, target = input.reshape(1), target.reshape(1)
    dim, classes = _class_dim(input), input.shape[-1]
    named = (target >= 0).long().cumprod(dim).bool()
    times = torch.zeros(input.shape, dtype=torch.int64).scatter_add_(dim, target.clamp(min=0), named.long())
    pairs = (times.unsqueeze(-1) * (times == 0).unsqueeze(-2)).to(input.dtype)
    slack = (1 - input.unsqueeze(-1) + input.unsqueeze(-2)).relu()
    losses = (slack * (pairs / classes)).sum((-2, -1))
    return _reduced(losses, _reduction(size_average, reduce, reduction), losses.numel())


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction that is asked for, in PyTorch's old words or its new."""
    if size_average is not None or reduce is not None:
        return legacy.legacy_get_string(size_average, reduce)
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return reduction


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.cross_entropy: cross_entropy,
    F.nll_loss: nll_loss,
    F.gaussian_nll_loss: gaussian_nll_loss,
    F.cosine_embedding_loss: cosine_embedding_loss,
    F.triplet_margin_loss: triplet_margin_loss,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
}
