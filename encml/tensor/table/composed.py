"""Reductions by public groups, searches and distances, made of other operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import bags, creation, distances, groups, sampling, searching

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.scatter_reduce.two: groups.scatter_reduce,
    aten.index_reduce.default: groups.index_reduce,
    aten._embedding_bag.default: bags.embedding_bag,
    aten._embedding_bag_forward_only.default: bags.embedding_bag,
    aten._embedding_bag_backward.default: bags.embedding_bag_backward,
    aten._embedding_bag_per_sample_weights_backward.default: bags.embedding_bag_weights_backward,
    aten.grid_sampler_2d.default: sampling.grid_sampler(aten.grid_sampler_2d.default),
    aten.grid_sampler_3d.default: sampling.grid_sampler(aten.grid_sampler_3d.default),
    aten.grid_sampler_2d_backward.default: sampling.grid_sampler_backward(aten.grid_sampler_2d.default),
    aten.grid_sampler_3d_backward.default: sampling.grid_sampler_backward(aten.grid_sampler_3d.default),
    aten.histc.default: searching.histc,
    aten.searchsorted.Tensor: searching.searchsorted,
    aten.searchsorted.Scalar: searching.searchsorted,
    aten.bucketize.Tensor: searching.bucketize,
    aten.bucketize.Scalar: searching.bucketize,
    aten.isin.Tensor_Tensor: searching.isin,
    aten.isin.Tensor_Scalar: searching.isin,
    aten.isin.Scalar_Tensor: searching.isin,
    aten._cdist_forward.default: distances.cdist,
    aten._cdist_backward.default: distances.cdist_backward,
    aten._pdist_forward.default: distances.pdist,
    aten._pdist_backward.default: distances.pdist_backward,
    aten.linspace.Tensor_Tensor: creation.linspace,
    aten.linspace.Tensor_Scalar: creation.linspace,
    aten.linspace.Scalar_Tensor: creation.linspace,
    aten.logspace.Tensor_Tensor: creation.logspace,
    aten.logspace.Tensor_Scalar: creation.logspace,
    aten.logspace.Scalar_Tensor: creation.logspace,
}
