"""The table of contents: every aten operator that works on a SharedTensor, and where.

One file lists one kind of operators. What is in none of them raises UnsupportedOperation. Nothing falls back to
plaintext.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from encml.tensor.handlers.common import in_place
from encml.tensor.table import (
    attention,
    basics,
    chance,
    composed,
    convolutions,
    curves,
    decomposed,
    elementary,
    foreach,
    losses,
    norms,
    ordering,
    pooling,
    rearranging,
    rounding,
    solving,
    tangents,
)


def merged(*parts: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """One table of several. Raises ValueError for an operator that two of them list."""
    table: dict[Any, Callable[..., Any]] = {}
    for part in parts:
        twice = table.keys() & part.keys()
        if twice:
            raise ValueError(f"operators listed twice: {', '.join(sorted(map(str, twice)))}")
        table.update(part)
    return table


def with_in_place_forms(handlers: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """The handlers, and those of the operators ``name_`` that write over their first argument what ``name`` gives.

    Views are left out, and what is listed stays as it is.
    """
    found = dict(handlers)
    for op, handler in handlers.items():
        packet = getattr(torch.ops.aten, op.overloadpacket.__name__ + "_", None)
        is_view = any(result.alias_info is not None for result in op._schema.returns)
        if packet is None or is_view:
            continue
        for form in (getattr(packet, name) for name in packet.overloads()):
            if _arguments(form) == _arguments(op):
                found.setdefault(form, in_place(handler))
    return found


def _arguments(op: Any) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in op._schema.arguments]


HANDLERS = with_in_place_forms(
    merged(
        basics.HANDLERS,
        rearranging.HANDLERS,
        rounding.HANDLERS,
        solving.HANDLERS,
        elementary.HANDLERS,
        composed.HANDLERS,
        convolutions.HANDLERS,
        pooling.HANDLERS,
        ordering.HANDLERS,
        curves.HANDLERS,
        norms.HANDLERS,
        attention.HANDLERS,
        losses.HANDLERS,
        chance.HANDLERS,
        foreach.HANDLERS,
        tangents.HANDLERS,
        decomposed.HANDLERS,
    )
)
