"""Public randomness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import chance

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.bernoulli_.float: chance.bernoulli_,
}
