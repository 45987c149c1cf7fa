"""What is ordered or chosen by value: abs, clamp, where, max, argmax, sort, topk; look-ups by a secret index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {}
