"""Losses that PyTorch computes from operators with more rounds, or looks at values for; cross-entropy is next door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.tensor.functions import cross_entropy
from encml.tensor.functions.cross_entropy import chosen_reduction, class_dim, reduced
from encml.tensor.shared import SharedTensor


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
    return reduced(losses, reduction, losses.numel())


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
    return reduced(losses, chosen_reduction(size_average, reduce, reduction), losses.numel())


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
    return reduced(losses, chosen_reduction(size_average, reduce, reduction), losses.numel())


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
    dim, classes = class_dim(input), input.shape[-1]
    index = target.unsqueeze(dim)
    slack = (margin - input.gather(dim, index) + input).relu()
    others = torch.ones(input.shape, dtype=input.dtype).scatter_(dim, index, 0)
    if weight is not None:
        others = others * weight[index]
    losses = ((slack if p == 1 else slack**p) * (others / classes)).sum(dim)
    return reduced(losses, chosen_reduction(size_average, reduce, reduction), losses.numel())


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
    dim, classes = class_dim(input), input.shape[-1]
    named = (target >= 0).long().cumprod(dim).bool()
    times = torch.zeros(input.shape, dtype=torch.int64).scatter_add_(dim, target.clamp(min=0), named.long())
    pairs = (times.unsqueeze(-1) * (times == 0).unsqueeze(-2)).to(input.dtype)
    slack = (1 - input.unsqueeze(-1) + input.unsqueeze(-2)).relu()
    losses = (slack * (pairs / classes)).sum((-2, -1))
    return reduced(losses, chosen_reduction(size_average, reduce, reduction), losses.numel())


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **cross_entropy.FUNCTIONS,
    F.gaussian_nll_loss: gaussian_nll_loss,
    F.cosine_embedding_loss: cosine_embedding_loss,
    F.triplet_margin_loss: triplet_margin_loss,
    F.multi_margin_loss: multi_margin_loss,
    F.multilabel_margin_loss: multilabel_margin_loss,
}
