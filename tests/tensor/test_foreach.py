"""Operators on lists of tensors: what they give for each, and in the rounds of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from reference import grid, near
from torch import Tensor

import encml
from encml import Session, SharedTensor, UnsupportedOperation

SHAPES = [(3, 4), (5,), (), (2, 0), (2, 1, 3)]


def lists(*seeds: int) -> list[list[Tensor]]:
    return [[grid(*shape, seed=seed + i) for i, shape in enumerate(SHAPES)] for seed in seeds]


def shared(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [encml.share(x) for x in tensors]


OPERATIONS: list[tuple[Callable[..., Any], float]] = [
    (lambda a, b: torch._foreach_add(a, b, alpha=0.5), 1),
    (lambda a, b: torch._foreach_add(a, 1.5), 0),
    (lambda a, b: torch._foreach_sub(a, b), 0),
    (lambda a, b: torch._foreach_sub(a, 2), 0),
    (lambda a, b: torch._foreach_mul(a, b), 1),
    (lambda a, b: torch._foreach_mul(a, 0.25), 1),
    (lambda a, b: torch._foreach_mul(a, b[2]), 1),
    (lambda a, b: torch._foreach_div(a, 4), 1),
    (lambda a, b: torch._foreach_neg(a), 0),
    (lambda a, b: torch._foreach_abs(a), 0),
    (lambda a, b: torch._foreach_clamp_min(a, -0.5), 0),
    (lambda a, b: torch._foreach_clamp_max(a, b), 0),
    (lambda a, b: torch._foreach_maximum(a, b), 0),
    (lambda a, b: torch._foreach_minimum(a, 0.25), 0),
]


@pytest.mark.parametrize(("operation", "ulps"), OPERATIONS)
@pytest.mark.parametrize("plain_second", [False, True])
def test_results(operation: Callable[..., Any], ulps: float, plain_second: bool) -> None:
    a, b = lists(0, 50)
    found = operation(shared(a), b if plain_second else shared(b))
    for x, y in zip(operation(a, b), found, strict=True):
        assert isinstance(y, SharedTensor)
        assert y.dtype == x.dtype
        near(y.reveal(), x, ulps)


@pytest.mark.parametrize(
    ("operation", "ulps"),
    [
        (lambda a, b: torch._foreach_add_(a, b, alpha=-0.1), 2),
        (lambda a, b: torch._foreach_mul_(a, b), 1),
        (lambda a, b: torch._foreach_mul_(a, b[2]), 1),
        (lambda a, b: torch._foreach_neg_(a), 0),
        (lambda a, b: torch._foreach_zero_(a), 0),
        (lambda a, b: torch._foreach_clamp_min_(a, 0), 0),
    ],
)
def test_in_place(operation: Callable[..., Any], ulps: float) -> None:
    a, b = lists(0, 50)
    targets = shared(a)
    views = [x.view(-1) for x in targets]
    operation(targets, shared(b))
    operation(a, b)
    for x, y, view in zip(a, targets, views, strict=True):
        near(y.reveal(), x, ulps)
        near(view.reveal(), x.reshape(-1), ulps)


@pytest.mark.parametrize("order", [2, 1, float("inf")])
def test_norms(order: float, session: Session) -> None:
    (a,) = lists(0)
    a = [x for x in a if x.numel()]
    with session.ledger.measure() as spent:
        found = torch._foreach_norm(shared(a), order)
    for x, y in zip(torch._foreach_norm(a, order), found, strict=True):
        near(y.reveal(), x, 3)
    if order == 2:
        assert spent[0].rounds <= 31 + len(a)  # one each for sharing


def test_lists_of_numbers_are_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="foreach"):
        torch._foreach_add(shared(lists(0)[0]), [1.0] * len(SHAPES))
