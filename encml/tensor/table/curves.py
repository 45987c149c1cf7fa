"""Functions of one number (exp, log, sqrt, tanh, ...), divisions and powers, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import curves

aten = torch.ops.aten

_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    aten.exp: curves.exp,
    aten.exp2: curves.exp2,
    aten.expm1: curves.expm1,
    aten.log: curves.log,
    aten.log2: curves.log_to(2),
    aten.log10: curves.log_to(10),
    aten.log1p: curves.log1p,
    aten.reciprocal: curves.reciprocal,
    aten.sqrt: curves.sqrt,
    aten.rsqrt: curves.rsqrt,
    aten.sin: curves.sin,
    aten.cos: curves.cos,
    aten.tan: curves.tan,
    aten.sinh: curves.sinh,
    aten.cosh: curves.cosh,
    aten.sigmoid: curves.sigmoid,
    aten.tanh: curves.tanh,
    aten.erf: curves.erf,
    aten.erfc: curves.erfc,
    aten.silu: curves.silu,
    aten.mish: curves.mish,
    aten.gelu: curves.gelu,
    aten.softplus: curves.softplus,
    aten.elu: curves.elu,
    aten.celu: curves.celu,
    aten.selu: curves.selu,
}
HANDLERS: dict[Any, Callable[..., Any]] = {
    **{op.default: handler for op, handler in _FUNCTIONS.items()},
    aten.div.Tensor: curves.divide,
    aten.div.Scalar: curves.divide,
    aten.pow.Tensor_Scalar: curves.power,
    aten.pow.Tensor_Tensor: curves.power_of_tensors,
    aten.pow.Scalar: curves.power_of_tensors,
    aten.sigmoid_backward.default: curves.sigmoid_backward,
    aten.tanh_backward.default: curves.tanh_backward,
    aten.gelu_backward.default: curves.gelu_backward,
    aten.silu_backward.default: curves.silu_backward,
    aten.mish_backward.default: curves.mish_backward,
    aten.softplus_backward.default: curves.softplus_backward,
    aten.elu_backward.default: curves.elu_backward,
    aten.log_sigmoid_forward.default: curves.log_sigmoid_forward,
    aten.log_sigmoid_backward.default: curves.log_sigmoid_backward,
}
