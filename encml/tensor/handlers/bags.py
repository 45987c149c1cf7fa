"""Sums and means of embeddings by bags (nn.EmbeddingBag); which embedding belongs to which bag is public."""

from __future__ import annotations

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation

_SUM, _MEAN = 0, 1


def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """_embedding_bag, _embedding_bag_forward_only: what a bag's embeddings add up to, and how they are in bags."""
    if mode not in (_SUM, _MEAN):
        raise UnsupportedOperation("embedding_bag: mode='max' would keep secret places for backward; use sum or mean")
    if scale_grad_by_freq:
        raise UnsupportedOperation("embedding_bag: scale_grad_by_freq; leave it out, or scale the per_sample_weights")
    bags = len(offsets) - include_last_offset
    starts = torch.zeros(len(indices) + 1, dtype=torch.int64).index_add(
        0, offsets[:bags], torch.ones_like(offsets[:bags])
    )
    bag_of = starts.cumsum(0)[: len(indices)] - 1
    counted = indices != padding_idx
    sizes = torch.zeros(bags, dtype=torch.int64).index_add(0, bag_of, counted.to(torch.int64))
    rows = torch.index_select(weight, 0, indices) * counted.to(weight.dtype).unsqueeze(-1)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    total = torch.zeros_like(weight[:1]).expand(bags, -1).index_add(0, bag_of, rows)
    if mode == _MEAN:
        total = total / sizes.clamp_min(1).to(weight.dtype).unsqueeze(-1)
    return total, bag_of, sizes, torch.zeros(bags, dtype=torch.int64)


def embedding_bag_backward(
    gradient: Tensor,
    indices: Tensor,
    offsets: Tensor,
    bag_of: Tensor,
    sizes: Tensor,
    places: Tensor,
    embeddings: int,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Tensor | None,
    padding_idx: int = -1,
) -> Tensor:
    """_embedding_bag_backward: towards the embeddings."""
    rows = torch.index_select(gradient, 0, bag_of)
    factors = (indices != padding_idx).to(gradient.dtype)
    if mode == _MEAN:
        factors = factors / sizes[bag_of].clamp_min(1)
    rows = rows * factors.unsqueeze(-1)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    return torch.zeros_like(gradient[:1]).expand(embeddings, -1).index_add(0, indices, rows)


def embedding_bag_weights_backward(
    gradient: Tensor,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    bag_of: Tensor,
    mode: int,
    padding_idx: int = -1,
) -> Tensor:
    """_embedding_bag_per_sample_weights_backward"""
    counted = (indices != padding_idx).to(weight.dtype)
    products = torch.index_select(gradient, 0, bag_of) * torch.index_select(weight, 0, indices)
    return products.sum(-1) * counted
