"""Functions of one number (exp, log, sqrt, tanh, ...), divisions and powers, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {}
