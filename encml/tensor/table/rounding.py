"""Rounding to whole numbers, and divisions that round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import rounding

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.floor.default: rounding.floor,
    aten.ceil.default: rounding.ceil,
    aten.trunc.default: rounding.trunc,
    aten.frac.default: rounding.frac,
    aten.round.default: rounding.nearest,
    aten.round.decimals: rounding.nearest,
    aten.div.Tensor_mode: rounding.divide,
    aten.div.Scalar_mode: rounding.divide,
    aten.floor_divide.default: rounding.floor_divide,
    aten.floor_divide.Scalar: rounding.floor_divide,
    aten.remainder.Tensor: rounding.remainder,
    aten.remainder.Scalar: rounding.remainder,
    aten.remainder.Scalar_Tensor: rounding.remainder,
    aten.fmod.Tensor: rounding.fmod,
    aten.fmod.Scalar: rounding.fmod,
}
