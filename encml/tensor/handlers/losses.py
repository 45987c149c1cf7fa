"""Losses, element by element, and their gradients.

Sums and means are taken before a product is rescaled, so that a loss is settled as one element.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.tensor.handlers import curves
from encml.tensor.handlers.arithmetic import add, add_secrets, mul, scale, sub
from encml.tensor.handlers.choosing import clamp
from encml.tensor.handlers.common import as_secret, by_public, session_of, wrap
from encml.tensor.handlers.linear import mean_all, sum_all, sum_dims
from encml.tensor.public import factor as public_factor
from encml.tensor.secret import Deferred, Secret, fits, settle_all
from encml.tensor.shared import SharedTensor, around, secret

NONE, MEAN = 0, 1


def reduced(values: SharedTensor, reduction: int) -> SharedTensor:
    """All values, their mean or their sum."""
    if reduction == NONE:
        return values
    return mean_all(values) if reduction == MEAN else sum_all(values)


def looked_at(total: SharedTensor, factor: float) -> SharedTensor:
    """A sum times a public number: what that costs is paid if somebody looks, for most losses are only derived from."""
    if fits(secret(total), *public_factor(factor, total.session.fraction_bits)):
        return wrap(scale(secret(total), factor), total.dtype)
    return around(Deferred(total.session, lambda: scale(secret(total), factor)), total, total.dtype)


def _times(slope: Tensor, gradient: Tensor) -> SharedTensor:
    """slope * gradient; no product where the gradient is a number that everybody knows, as for ``loss.backward()``."""
    known = secret(gradient).fact("constant") if isinstance(gradient, SharedTensor) else None
    if known is None or not isinstance(slope, SharedTensor) or gradient.ndim:
        return mul(slope, gradient)
    dtype = torch.promote_types(slope.dtype, gradient.dtype)
    return wrap(secret(slope) if known == 1 else scale(secret(slope), known), dtype)


def _shared_out(gradient: Tensor, slope: Tensor, reduction: int) -> SharedTensor:
    """gradient * slope, over the number of elements for a mean."""
    product = _times(slope, gradient)
    if reduction != MEAN or not slope.numel():
        return product
    return wrap(scale(secret(product), 1.0 / slope.numel()), product.dtype)


def _remember(what: str, x: Tensor, y: Tensor, setting: Any, value: SharedTensor) -> SharedTensor:
    """Keep with the secret one of x and y what backward needs of the pair."""
    owner, other = (x, y) if isinstance(x, SharedTensor) else (y, x)
    met = secret(other) if isinstance(other, SharedTensor) else other
    secret(owner).keep(what, (met, (owner is x, setting), value))
    return value


def _recall(what: str, x: Tensor, y: Tensor, setting: Any) -> SharedTensor | None:
    owner, other = (x, y) if isinstance(x, SharedTensor) else (y, x)
    met, kept_setting, value = secret(owner).fact(what) or (None, None, None)
    if value is None or kept_setting != (owner is x, setting):
        return None
    if isinstance(other, SharedTensor):
        same = met is secret(other)
    else:
        same = isinstance(met, Tensor) and torch.equal(met, other)
    result: SharedTensor | None = value if same else None
    return result


# Of differences --------------------------------------------------------------------------------------------------


def mse_loss(x: Tensor, y: Tensor, reduction: int = MEAN) -> SharedTensor:
    """mse_loss: pending; 3 rounds and 8.75 B a party for all once it is settled, 3 more for a mean over no power of 2.

    x and y are settled, for backward asks for their difference again.
    """
    settle_all(*(secret(t) for t in (x, y) if isinstance(t, SharedTensor)))
    difference = sub(x, y)
    squares = mul(difference, difference)
    if reduction != MEAN or not squares.numel():
        return reduced(squares, reduction)
    return looked_at(sum_all(squares), 1.0 / squares.numel())


def mse_loss_backward(gradient: Tensor, x: Tensor, y: Tensor, reduction: int) -> SharedTensor:
    """mse_loss_backward: 2 (x - y) g, divided by the number of elements for a mean."""
    difference = sub(x, y)
    scaled = _times(difference, gradient)
    factor = 2.0 / difference.numel() if reduction == MEAN and difference.numel() else 2
    return wrap(scale(secret(scaled), factor), torch.promote_types(x.dtype, y.dtype))


def huber_loss(x: Tensor, y: Tensor, reduction: int = MEAN, delta: float = 1.0) -> SharedTensor:
    """huber_loss: z (d - z / 2) of the difference d clamped to z, |z| <= delta. 10 rounds, 61 B a party and element.

    z stays for backward, which takes no comparison then.
    """
    difference = sub(x, y)
    clamped = _remember("clamped difference", x, y, delta, clamp(difference, -delta, delta))
    half = wrap(scale(secret(clamped), 0.5), clamped.dtype)
    return reduced(mul(clamped, sub(difference, half)), reduction)


def huber_loss_backward(gradient: Tensor, x: Tensor, y: Tensor, reduction: int, delta: float) -> SharedTensor:
    """huber_loss_backward: z g. A product."""
    clamped = _recall("clamped difference", x, y, delta)
    if clamped is None:
        swapped = _recall("clamped difference", y, x, delta)  # the gradient of y
        clamped = clamp(sub(x, y), -delta, delta) if swapped is None else _negative(swapped)
    return _shared_out(gradient, clamped, reduction)


def smooth_l1_loss(x: Tensor, y: Tensor, reduction: int = MEAN, beta: float = 1.0) -> SharedTensor:
    """smooth_l1_loss: a Huber loss, divided by beta; absolute differences for beta = 0."""
    if beta == 0:
        return reduced(torch.abs(sub(x, y)), reduction)  # type: ignore[arg-type]  # a SharedTensor
    return _divided(huber_loss(x, y, reduction, beta), beta)


def smooth_l1_loss_backward(gradient: Tensor, x: Tensor, y: Tensor, reduction: int, beta: float) -> SharedTensor:
    """smooth_l1_loss_backward"""
    if beta == 0:
        return _shared_out(gradient, torch.sign(sub(x, y)), reduction)
    return _divided(huber_loss_backward(gradient, x, y, reduction, beta), beta)


def _negative(x: SharedTensor) -> SharedTensor:
    return wrap(secret(x).linear(torch.neg), x.dtype)


def _divided(x: SharedTensor, number: float) -> SharedTensor:
    return x if number == 1 else wrap(scale(secret(x), 1.0 / number), x.dtype)


# Of probabilities ------------------------------------------------------------------------------------------------


def binary_cross_entropy(x: Tensor, y: Tensor, weight: Tensor | None = None, reduction: int = MEAN) -> SharedTensor:
    """binary_cross_entropy: -(y log x + (1 - y) log(1 - x)), both logarithms in the same rounds.

    A logarithm of 0 counts as about -(f log 2 + 2), -13 at f = 16, where PyTorch takes -100. The cost of 2 logarithms
    an element, 27 rounds, and a product.
    """
    of_one, of_zero = _of_both(curves.log, torch.log, x)
    losses = _negative(add(of_zero, mul(sub(of_one, of_zero), y)))
    return reduced(losses if weight is None else mul(losses, weight), reduction)


def binary_cross_entropy_backward(
    gradient: Tensor, x: Tensor, y: Tensor, weight: Tensor | None = None, reduction: int = MEAN
) -> SharedTensor:
    """binary_cross_entropy_backward: (1 - y) / (1 - x) - y / x. The cost of 2 reciprocals an element, 27 rounds.

    More than the smallest number's reciprocal, about 2^f, it never is. From logits it is cheaper and exact.
    """
    of_one, of_zero = _of_both(curves.reciprocal, torch.reciprocal, x)
    slope = sub(of_zero, mul(add(of_one, of_zero), y))
    return _shared_out(gradient, slope if weight is None else mul(slope, weight), reduction)


def _of_both(
    function: Callable[[SharedTensor], SharedTensor], plain: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """A function of x and of 1 - x."""
    if not isinstance(x, SharedTensor):
        least = torch.finfo(x.dtype).tiny
        return plain(x.clamp(min=least)).clamp(-100), plain((1 - x).clamp(min=least)).clamp(-100)
    value = secret(x).settle()
    both = [value.terms, add_secrets(as_secret(1, x.session), value, -1).terms]
    results = secret(function(wrap(Secret(x.session, value.fraction_bits, payload=torch.stack(both, 1)), x.dtype)))
    one, other = (wrap(results.view(partial(torch.select, dim=1, index=i)), x.dtype) for i in (0, 1))
    return one, other


def binary_cross_entropy_with_logits(
    x: Tensor, y: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = MEAN
) -> SharedTensor:
    """binary_cross_entropy_with_logits: softplus(x) - y x; where x lies is kept for the sigmoid of backward."""
    raised = curves.softplus(x) if isinstance(x, SharedTensor) else torch.nn.functional.softplus(x)
    losses = sub(raised, mul(y, x))
    if pos_weight is not None:
        more = pos_weight - 1 if not isinstance(pos_weight, SharedTensor) else sub(pos_weight, 1)
        losses = add(losses, mul(mul(y, _difference(raised, x)), more))
    return reduced(losses if weight is None else mul(losses, weight), reduction)


def _difference(x: Tensor, y: Tensor) -> Tensor:
    return sub(x, y) if isinstance(x, SharedTensor) or isinstance(y, SharedTensor) else x - y


def soft_margin_loss(x: Tensor, y: Tensor, reduction: int = MEAN) -> SharedTensor:
    """soft_margin_loss: softplus(-y x)."""
    margin = _remember("margin", x, y, None, _negative(mul(x, y)))
    return reduced(curves.softplus(margin), reduction)


def soft_margin_loss_backward(gradient: Tensor, x: Tensor, y: Tensor, reduction: int) -> SharedTensor:
    """soft_margin_loss_backward: -y sigmoid(-y x), on what forward found."""
    margin = _recall("margin", x, y, None)
    if margin is None:
        margin = _negative(mul(x, y))
    return _shared_out(gradient, _negative(mul(curves.sigmoid(margin), y)), reduction)


# Of log-probabilities, by public classes ---------------------------------------------------------------------------


def class_weights(
    target: Tensor, like: Tensor, weight: Tensor | None, ignore_index: int, dim: int
) -> tuple[Tensor, float]:
    """(the weight of every class at every place of ``like``, double; their sum) for public classes, 0 where ignored."""
    classes = like.shape[dim]
    if weight is not None and isinstance(weight, SharedTensor):
        raise UnsupportedOperation("class weights that are secret: supported are public ones")
    kept = target != ignore_index
    if bool(((target < 0) | (target >= classes))[kept].any()):
        raise IndexError(f"a target is out of bounds: expected 0 to {classes - 1}, or ignore_index={ignore_index}")
    index = torch.where(kept, target, 0)
    each = torch.ones(classes, dtype=torch.float64) if weight is None else weight.detach().double()
    weights = each[index] * kept
    rows = torch.zeros(like.shape, dtype=torch.float64).scatter_(dim, index.unsqueeze(dim), weights.unsqueeze(dim))
    return rows, float(weights.sum())


def nll_loss(
    x: SharedTensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[SharedTensor, Tensor]:
    """nll_loss_forward, nll_loss2d_forward with public classes. No communication."""
    rows, total = class_weights(target, x, weight, ignore_index, _class_dim(x))
    chosen = by_public(torch.mul, secret(x), rows).linear(torch.neg)
    losses = sum_dims(wrap(chosen, x.dtype), (_class_dim(x),))
    if reduction != NONE:
        losses = sum_all(losses)
    if reduction == MEAN:
        losses = _divided(losses, _nonzero(total))
    return losses, torch.tensor(total if reduction != NONE else 0.0, dtype=x.dtype)


def nll_loss_backward(
    gradient: Tensor,
    x: SharedTensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> SharedTensor:
    """nll_loss_backward, nll_loss2d_backward. No communication."""
    rows, total = class_weights(target, x, weight, ignore_index, _class_dim(x))
    if reduction == MEAN:
        rows = rows / _nonzero(total)
    held = as_secret(gradient, session_of(gradient, x))
    if reduction == NONE:
        held = held.view(lambda terms: terms.unsqueeze(_class_dim(x) + 1))
    return wrap(by_public(torch.mul, held, -rows), x.dtype)


def _class_dim(x: Tensor) -> int:
    return 1 if x.ndim > 1 else 0


def _nonzero(total: float) -> float:
    if total == 0:
        raise UnsupportedOperation("a mean over targets that are all ignored: it would be NaN")
    return total
