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
    convolutions,
    curves,
    decomposed,
    losses,
    norms,
    ordering,
    pooling,
    rearranging,
    rounding,
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
        form = getattr(packet, op._overloadname, None)
        is_view = any(result.alias_info is not None for result in op._schema.returns)
        if form is not None and not is_view and _same_arguments(op, form):
            found.setdefault(form, in_place(handler))
    return found


def _same_arguments(op: Any, form: Any) -> bool:
    ours, theirs = ([(a.name, str(a.type)) for a in f._schema.arguments] for f in (op, form))
    return ours == theirs


HANDLERS = with_in_place_forms(
    merged(
        basics.HANDLERS,
        rearranging.HANDLERS,
        rounding.HANDLERS,
        convolutions.HANDLERS,
        pooling.HANDLERS,
        ordering.HANDLERS,
        curves.HANDLERS,
        norms.HANDLERS,
        attention.HANDLERS,
        losses.HANDLERS,
        chance.HANDLERS,
        decomposed.HANDLERS,
    )
)
