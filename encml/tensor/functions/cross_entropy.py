"""Cross-entropy as a whole, which is cheaper than the operators that PyTorch takes it apart into.

For public or secret classes or probabilities, with their weights, as rows t; p the softmax of x, r the sum of a row,

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
from encml.mpc.functions.softmax import total_bits
from encml.tensor.functions.common import differentiable_once, transformed
from encml.tensor.handlers import attention, lookup
from encml.tensor.handlers.arithmetic import mul, scale, sub
from encml.tensor.handlers.common import wrap
from encml.tensor.handlers.linear import sum_all, sum_dims
from encml.tensor.handlers.losses import class_weights, looked_at
from encml.tensor.handlers.moments import by, known_at, plus
from encml.tensor.shared import SharedTensor, secret

_IGNORE = -100
_SMOOTHING_BITS = 4


@dataclass(frozen=True, slots=True)
class _Target:
    """What a cross-entropy sums the negative log-probabilities with.

    weights: for every class at every place, public or secret; or the protocol that finds them. rows: their sums over
    the classes; None where all are 1. count: what a mean divides by, public or secret. small: whether the rows are
    known to be below 2^``total_bits``.
    """

    weights: Tensor | Callable[[], Tensor]
    rows: Tensor | None
    count: float | Tensor
    small: bool = True

    def found(self) -> Tensor:
        """The weights."""
        return self.weights if isinstance(self.weights, Tensor) else self.weights()

    def slope(self, x: SharedTensor, dim: int) -> tuple[SharedTensor, SharedTensor | None]:
        """The log-softmax of x, and the softmax times the rows if it is to be had in the same rounds."""
        rows = self.rows
        if rows is None or (isinstance(rows, SharedTensor) and self.small):
            found = attention.log_softmax_and_slope(x, dim, rows)
            if found is not None:
                return found
        return attention.log_softmax(x, dim), None

    @property
    def whole(self) -> bool:
        """Whether _CrossEntropy takes it: nothing to be differentiated, a public count."""
        differentiable = isinstance(self.weights, Tensor) and self.weights.requires_grad
        return not differentiable and not isinstance(self.count, Tensor)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: SharedTensor, target: _Target, reduction: str, learns: bool) -> Tensor:
        dim, session = class_dim(x), x.session
        with session.whole(), session.ledger.operation("cross_entropy"):
            (logs, slope), weights = session.parties.together(
                lambda: target.slope(x, dim) if learns else (attention.log_softmax(x, dim), None), target.found
            )
            losses = sum_dims(_weighted(_negative(logs), weights), (dim,))
            if reduction != "none":
                losses = sum_all(losses)
            if reduction == "mean":
                losses = looked_at(losses, 1.0 / float(target.count))
        ctx.save_for_backward(logs, weights, target.rows, slope)
        ctx.count, ctx.reduction = target.count, reduction
        return losses

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: SharedTensor) -> tuple[Tensor | None, ...]:
        logs, weights, rows, slope = ctx.saved_tensors
        dim = class_dim(logs)
        with logs.session.whole(), logs.session.ledger.operation("cross_entropy_backward"):
            if slope is None:
                slope = attention.softmax_of(logs, dim)
                slope = slope if rows is None else mul(slope, rows.to(slope.dtype))
            slope = sub(slope, weights)
            known = secret(gradient).fact("constant")
            if known is None:
                slope = mul(slope, gradient.unsqueeze(dim) if ctx.reduction == "none" else gradient)
            elif known != 1:
                slope = wrap(scale(secret(slope), known), slope.dtype)
            if ctx.reduction == "mean":
                slope = _divided(slope, ctx.count)
        return slope, None, None, None


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

    47 rounds and 2.8 kB a party and row of ten classes, backward included; 3 more with more than AT_ONCE logits, and
    another 3 then if the target is secret probabilities. Those of a row add up to less than 2^9 at f = 16. Secret
    classes cost a look-up each (see ``encml.tensor.handlers.lookup``); each must be one, for nobody would see it else.
    """
    reduction = chosen_reduction(size_average, reduce, reduction)
    dim = class_dim(input)
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
    if reduction == "mean" and not isinstance(asked.count, Tensor) and not asked.count:
        raise UnsupportedOperation("cross_entropy: all targets are ignored, a mean over them would be NaN")
    if isinstance(input, SharedTensor) and asked.whole and not transformed():
        learns = torch.is_grad_enabled() and input.requires_grad
        result: Tensor = _CrossEntropy.apply(input, asked, reduction, learns)  # type: ignore[no-untyped-call]
        return result
    losses = -(F.log_softmax(input, dim) * asked.found()).sum(dim)
    return reduced(losses, reduction, asked.count)


def reduced(losses: Tensor, reduction: str, count: float | Tensor) -> Tensor:
    """All losses, their sum, or that over ``count``."""
    if reduction == "none":
        return losses
    return losses.sum() / count if reduction == "mean" else losses.sum()


def _of_public_classes(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float
) -> _Target:
    dim = class_dim(input)
    if isinstance(weight, SharedTensor):
        return _of_secret_weights(input, target, weight, ignore_index, smoothing)
    weights, count = class_weights(target, input, weight, ignore_index, dim)
    if smoothing:
        kept = (target != ignore_index).unsqueeze(dim)
        weights = (1 - smoothing) * weights + smoothing / input.shape[dim] * _per_class(weight, input) * kept
    return _public(weights, input, count)


def _of_secret_weights(
    input: Tensor, target: Tensor, weight: SharedTensor, ignore_index: int, smoothing: float
) -> _Target:
    """Public classes whose weights are secret."""
    dim = class_dim(input)
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
    rows = weights.sum(class_dim(input), keepdim=True)
    if isinstance(input, SharedTensor) and bool(((rows - 1).abs() < 2.0 ** -(input.session.fraction_bits + 2)).all()):
        return _Target(weights.to(input.dtype), None, count)
    return _Target(weights.to(input.dtype), rows, count)


def _of_secret_classes(
    input: Tensor, target: SharedTensor, weight: Tensor | None, ignore_index: int, smoothing: float
) -> _Target:
    dim = class_dim(input)
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
    dim = class_dim(input)
    weights, small = target, True
    if smoothing:
        weights = weights * (1 - smoothing) + smoothing / input.shape[dim]
    if weight is not None:
        weights = weights * _per_class(weight, input)
        small = isinstance(input, SharedTensor) and not isinstance(weight, SharedTensor)
        if isinstance(input, SharedTensor) and small:
            small = float(weight.abs().max()) < 2.0 ** (total_bits(input.session.fraction_bits) - 1)
    count = input.numel() / input.shape[dim]
    if not isinstance(weights, SharedTensor):
        return _public(weights.detach().double(), input, count)
    return _Target(weights, weights.sum(dim, keepdim=True), count, small)


def one_hot(target: SharedTensor, classes: int, dim: int, dtype: torch.dtype) -> SharedTensor:
    """Rows of a 1 and zeros for secret classes, along dimension ``dim``."""
    rows = secret(lookup.one_hot_rows(target, classes, dtype))
    return wrap(rows.linear(lambda terms: terms.view(len(terms), classes, *target.shape).movedim(1, dim + 1)), dtype)


def _per_class(weight: Tensor | None, input: Tensor) -> Tensor:
    """Class weights, 1 if there are none, as they meet the input."""
    dim = class_dim(input)
    if weight is None:
        return torch.ones((), dtype=torch.float64)
    return weight.view(-1, *(1,) * (input.ndim - dim - 1))


def class_dim(x: Tensor) -> int:
    """The dimension of the classes: 1, but for a single row."""
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


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: object = None,
) -> Tensor:
    """F.linear_cross_entropy: a linear layer, then ``cross_entropy``; never in chunks, whatever ``options`` say."""
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    scores = F.linear(input, linear_weight.flatten(0, -2), bias)
    scores = scores.reshape(*input.shape[:-1], *linear_weight.shape[:-1])
    ignored = _IGNORE if ignore_index is None else ignore_index
    return cross_entropy(
        scores, target, weight, ignore_index=ignored, reduction=reduction, label_smoothing=label_smoothing
    )


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
    reduction = chosen_reduction(size_average, reduce, reduction)
    of = _of_secret_classes if isinstance(target, SharedTensor) else _of_public_classes
    asked = of(input, target, weight, ignore_index, 0.0)  # type: ignore[arg-type]  # as the line above says
    return reduced(-(input * asked.found()).sum(class_dim(input)), reduction, asked.count)


def chosen_reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """The reduction that is asked for, in PyTorch's old words or its new."""
    if size_average is not None or reduce is not None:
        return legacy.legacy_get_string(size_average, reduce)
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return reduction


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.cross_entropy: cross_entropy,
    F.linear_cross_entropy: linear_cross_entropy,
    F.nll_loss: nll_loss,
}
