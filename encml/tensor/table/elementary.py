"""Further functions of one or two numbers, made of the curves, signs and logarithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import inverses, logarithms

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.asin.default: inverses.asin,
    aten.acos.default: inverses.acos,
    aten.atan.default: inverses.atan,
    aten.atan2.default: inverses.atan2,
    aten.asinh.default: inverses.asinh,
    aten.acosh.default: inverses.acosh,
    aten.atanh.default: inverses.atanh,
    aten.xlogy.Tensor: logarithms.xlogy,
    aten.xlogy.Scalar_Self: logarithms.xlogy,
    aten.xlogy.Scalar_Other: logarithms.xlogy,
    aten.special_xlog1py.default: logarithms.xlog1py,
    aten.special_entr.default: logarithms.entr,
    aten.logaddexp2.default: logarithms.logaddexp2,
    aten.logit.default: logarithms.logit,
    aten.logit_backward.default: logarithms.logit_backward,
    aten.hypot.default: logarithms.hypot,
    aten.ldexp.Tensor: logarithms.ldexp,
    aten.signbit.default: logarithms.signbit,
    aten.copysign.Tensor: logarithms.copysign,
    aten.copysign.Scalar: logarithms.copysign,
}
