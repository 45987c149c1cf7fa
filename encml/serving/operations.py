"""The operations that a served model may consist of: an explicit list, each computable on secrets.

They are forward operations without side effects that give one tensor (or, ``sym_size``, a number). What a graph names
is looked up here and nowhere else, so that a graph can never reach an operation that reads a file or a secret.
"""

from __future__ import annotations

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
        "flip.default",
        "roll.default",
        "repeat.default",
        "cumsum.default",
        "constant_pad_nd.default",
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
        "mv.default",
        "dot.default",
        "addmm.default",
        "conv2d.default",
        "convolution.default",
        "avg_pool2d.default",
        # Signs
        "relu.default",
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
        # Nothing at all in a served model
        "dropout.default",
    )
)

ROWWISE = frozenset(
    f"aten.{name}"
    for name in (
        "clone.default",
        "detach.default",
        "alias.default",
        "contiguous.default",
        "dropout.default",
        "relu.default",
        "neg.default",
        "square.default",
        "pow.Tensor_Scalar",
        "add.Tensor",
        "sub.Tensor",
        "mul.Tensor",
        "div.Tensor",
        "linear.default",
        "conv2d.default",
        "avg_pool2d.default",
        "flatten.using_ints",
        "view.default",
        "reshape.default",
    )
)
"""Operations that can treat every example of a batch by itself (whether they do depends on the shapes)."""


@cache
def operation(name: str) -> Callable[..., Any]:
    """The aten operator of that name. Raises KeyError for a name that is not in ``OPERATIONS``."""
    if name not in OPERATIONS:
        raise KeyError(name)
    _, packet, overload = name.split(".")
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    return found
