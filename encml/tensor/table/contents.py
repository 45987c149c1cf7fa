"""The table of contents: every aten operator that works on a SharedTensor, and where.

One file lists one kind of operators. What is in none of them raises UnsupportedOperation. Nothing falls back to
plaintext.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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


HANDLERS = merged(
    basics.HANDLERS,
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
