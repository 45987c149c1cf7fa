"""The same for each tensor of a list. Lists of numbers are not taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import foreach

aten = torch.ops.aten

_ELEMENT_WISE = ("add", "sub", "mul", "div", "neg", "abs", "clamp_min", "clamp_max", "lerp")
_NAMED_OTHERWISE: dict[str, Any] = {"maximum": torch.clamp_min, "minimum": torch.clamp_max, "zero": torch.zeros_like}
_FORMS = ("default", "Scalar", "List", "Tensor")


def _handlers() -> dict[Any, Callable[..., Any]]:
    table: dict[Any, Callable[..., Any]] = {aten._foreach_norm.Scalar: foreach.norms}
    for name in (*_ELEMENT_WISE, *_NAMED_OTHERWISE):
        op: Callable[..., Any] = _NAMED_OTHERWISE.get(name) or getattr(torch, name)
        for suffix, make in (("", foreach.each), ("_", foreach.each_in_place)):
            packet = getattr(aten, f"_foreach_{name}{suffix}")
            table |= {getattr(packet, form): make(op) for form in packet.overloads() if form in _FORMS}
    return table


HANDLERS: dict[Any, Callable[..., Any]] = _handlers()
