"""The same for each tensor of a list: element-wise operators on all elements at once, in the rounds of one.

PyTorch comes here where ``foreach=True`` tells it to: all gradients clipped, all parameters updated in the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from encml.tensor.handlers import vectors
from encml.tensor.handlers.common import session_of, wrap, write
from encml.tensor.handlers.moments import SQUARE_BITS, cut, root, sum_times
from encml.tensor.public import Number
from encml.tensor.secret import Secret, settle_all
from encml.tensor.shared import SharedTensor, secret

Tensors = Sequence[Tensor]


def each(op: Callable[..., Any]) -> Callable[..., list[Tensor]]:
    """The handler of _foreach_name from the element-wise operator ``name``."""

    def handler(tensors: Tensors, *others: Any, **options: Any) -> list[Tensor]:
        flat = op(_flat(tensors, tensors), *(_operand(other, tensors) for other in others), **options)
        sizes = [x.numel() for x in tensors]
        parts = torch.split(flat, sizes)
        return [part.view(x.shape).to(x.dtype) for part, x in zip(parts, tensors, strict=True)]

    return handler


def each_in_place(op: Callable[..., Any]) -> Callable[..., None]:
    """The handler of _foreach_name_: what ``each`` gives is written into the tensors."""

    def handler(tensors: Tensors, *others: Any, **options: Any) -> None:
        results = each(op)(tensors, *others, **options)
        for x, result in zip(tensors, results, strict=True):
            write(x, secret(result), result.dtype)

    return handler


def norms(tensors: Tensors, order: Number = 2, dtype: torch.dtype | None = None) -> list[SharedTensor]:
    """_foreach_norm. Order 2: 30 rounds, 0.2 kB a party and tensor; other orders one after the other."""
    if order != 2:
        return [vectors.vector_norm(_shared(x, tensors), order, dtype=dtype) for x in tensors]
    session = session_of(*tensors)
    held = [secret(_shared(x, tensors)) for x in tensors]
    settle_all(*held)
    squares = [sum_times(value, value, range(1, value.terms.ndim), keepdim=False) for value in held]
    bits = max(value.fraction_bits for value in squares)
    total = Secret(session, bits, rows=torch.stack([value.at_bits(bits) for value in squares], 1))
    lengths = root(cut(total, SQUARE_BITS), session.fraction_bits)
    return [
        wrap(lengths.linear(lambda terms, place=i: terms[:, place]), dtype or x.dtype)  # type: ignore[misc]
        for i, x in enumerate(tensors)
    ]


def _operand(other: Any, tensors: Tensors) -> Any:
    return _flat(other, tensors) if isinstance(other, list | tuple) else other


def _flat(values: Sequence[Tensor], like: Tensors) -> Tensor:
    """All elements in one row, broadcast to the shapes of ``like``."""
    return torch.cat([value.expand(x.shape).reshape(-1) for value, x in zip(values, like, strict=True)])


def _shared(x: Tensor, among: Tensors) -> SharedTensor:
    """x as a SharedTensor of the session of those among ``among``."""
    return x if isinstance(x, SharedTensor) else wrap(Secret.of_public(session_of(*among), x), x.dtype)
