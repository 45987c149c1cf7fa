"""The operations that a served model may consist of: an explicit list, each computable on secrets.

They are forward operations without side effects that give tensors or, as ``sym_size`` does, numbers. What a graph
names is looked up here and nowhere else, so that a graph can never reach an operation that reads a file or a secret.

Batch normalisation is not in the list: a model's owner folds it into its weights (``encml.serving.folding``).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

OPERATIONS = frozenset(
    f"aten.{name}"
    for name in (
        # Shapes
        "sym_size.int",
        "alias.default",
        "clone.default",
        "contiguous.default",
        "detach.default",
        "view.default",
        "reshape.default",
        "flatten.using_ints",
        "unflatten.int",
        "t.default",
        "transpose.int",
        "permute.default",
        "movedim.int",
        "expand.default",
        "unsqueeze.default",
        "squeeze.default",
        "squeeze.dim",
        "squeeze.dims",
        "select.int",
        "slice.Tensor",
        "narrow.default",
        "cat.default",
        "stack.default",
        "chunk.default",
        "split.Tensor",
        "split_with_sizes.default",
        "unbind.int",
        "flip.default",
        "roll.default",
        "repeat.default",
        "cumsum.default",
        "pad.default",
        "constant_pad_nd.default",
        "reflection_pad1d.default",
        "reflection_pad2d.default",
        "replication_pad1d.default",
        "replication_pad2d.default",
        "pixel_shuffle.default",
        "pixel_unshuffle.default",
        "channel_shuffle.default",
        # Arithmetic
        "add.Tensor",
        "add.Scalar",
        "sub.Tensor",
        "sub.Scalar",
        "rsub.Scalar",
        "neg.default",
        "mul.Tensor",
        "mul.Scalar",
        "div.Tensor",
        "div.Scalar",
        "pow.Tensor_Scalar",
        "square.default",
        "sum.default",
        "sum.dim_IntList",
        "mean.default",
        "mean.dim",
        # Products
        "linear.default",
        "matmul.default",
        "mm.default",
        "bmm.default",
        "baddbmm.default",
        "mv.default",
        "dot.default",
        "addmm.default",
        "conv1d.default",
        "conv2d.default",
        "conv3d.default",
        "conv_transpose1d.default",
        "conv_transpose2d.input",
        "convolution.default",
        "scaled_dot_product_attention.default",
        # Pools
        "avg_pool1d.default",
        "avg_pool2d.default",
        "avg_pool3d.default",
        "adaptive_avg_pool1d.default",
        "adaptive_avg_pool2d.default",
        "adaptive_avg_pool3d.default",
        "max_pool1d.default",
        "max_pool2d.default",
        "max_pool3d.default",
        "adaptive_max_pool1d.default",
        "adaptive_max_pool2d.default",
        # Signs
        "relu.default",
        "relu6.default",
        "leaky_relu.default",
        "prelu.default",
        "hardtanh.default",
        "hardswish.default",
        "hardsigmoid.default",
        "clamp.default",
        "clamp_min.default",
        "clamp_max.default",
        "abs.default",
        "amax.default",
        "amin.default",
        "lt.Tensor",
        "lt.Scalar",
        "le.Tensor",
        "le.Scalar",
        "gt.Tensor",
        "gt.Scalar",
        "ge.Tensor",
        "ge.Scalar",
        "eq.Tensor",
        "eq.Scalar",
        "ne.Tensor",
        "ne.Scalar",
        "logical_not.default",
        # Curves
        "exp.default",
        "log.default",
        "sqrt.default",
        "rsqrt.default",
        "reciprocal.default",
        "sigmoid.default",
        "log_sigmoid.default",
        "tanh.default",
        "erf.default",
        "gelu.default",
        "silu.default",
        "mish.default",
        "softplus.default",
        "elu.default",
        "celu.default",
        "selu.default",
        "glu.default",
        "softmax.int",
        "log_softmax.int",
        # Norms within an example
        "layer_norm.default",
        "group_norm.default",
        "rms_norm.default",
        # Nothing at all in a served model
        "dropout.default",
    )
)

PICKS = {
    "aten.chunk.default": None,
    "aten.split.Tensor": None,
    "aten.split_with_sizes.default": None,
    "aten.unbind.int": None,
    "aten.adaptive_max_pool1d.default": 0,
    "aten.adaptive_max_pool2d.default": 0,
}
"""Operations that give several tensors, of which a node picks one: any (None), or only the one that is told here."""

MAX_NUMBER = 2**62
"""A number that a graph computes is smaller, in magnitude."""


def _bounded(function: Callable[[int, int], int]) -> Callable[[Any, Any], int]:
    def compute(a: Any, b: Any) -> int:
        if type(a) is not int or type(b) is not int:
            raise TypeError(f"expected two whole numbers, found {type(a).__name__} and {type(b).__name__}")
        result = function(a, b)
        if abs(result) >= MAX_NUMBER:
            raise ValueError(f"a number beyond {MAX_NUMBER:,}")
        return result

    return compute


NUMBERS: dict[str, Callable[[Any, Any], int]] = {
    f"number.{name}": _bounded(getattr(operator, name)) for name in ("add", "sub", "mul", "floordiv")
}
"""Arithmetic with sizes: whole numbers that depend on the batch."""


@cache
def operation(name: str) -> Callable[..., Any]:
    """The operation of that name. Raises KeyError for a name that is in neither ``OPERATIONS`` nor ``NUMBERS``."""
    if name in NUMBERS:
        return NUMBERS[name]
    if name not in OPERATIONS:
        raise KeyError(name)
    _, packet, overload = name.split(".")
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    return found
