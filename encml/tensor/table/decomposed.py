"""Operators that PyTorch itself takes apart into others of this table.

Only where no handler of ours is cheaper in rounds or bytes, and exact enough: the parts are computed in fixed point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import get_decompositions

aten = torch.ops.aten

OPERATORS = (
    aten.addcdiv.default,
    aten.glu.default,
    aten.glu_backward.default,
    aten.linalg_cross.default,
    aten.mvlgamma.default,
    aten.native_dropout_backward.default,
    aten.renorm.default,
)

HANDLERS: dict[Any, Callable[..., Any]] = dict(get_decompositions(OPERATORS))
