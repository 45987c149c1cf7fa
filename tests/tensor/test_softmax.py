"""Softmax, log-softmax, softmin, logsumexp, logaddexp: values, gradients, layouts, masks, cost.

Tolerances. A softmax is off by less than 2 ulp where it is below 1/8; up to 1, by less than 4 (its relative error is
below 2^-14). Backward: p (g - sum p g) with |g| <= 2 has the error of p twice, times 2, and two roundings; that of a
log-softmax over k entries has the error of p times |sum g| <= 2 k.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import grid, matches, near
from torch import Tensor

import encml
from encml import Session, UnsupportedOperation

SOFTMAX, BACKWARD = 4, 18


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.transpose(0, 2), lambda x: x.permute(1, 2, 0)[:, ::2]])
def test_every_dimension_and_layout(dim: int, layout: Callable[[Tensor], Tensor]) -> None:
    x = grid(4, 3, 5, low=-4, high=4)
    matches(lambda x: F.softmax(layout(x), dim), x, ulps=SOFTMAX, grad_ulps=BACKWARD)
    matches(lambda x: F.log_softmax(layout(x), dim), x, ulps=2, grad_ulps=40)
    matches(lambda x: F.softmin(layout(x), dim), x, ulps=SOFTMAX, grad_ulps=BACKWARD)
    matches(lambda x: torch.logsumexp(layout(x), dim), x, ulps=2, grad_ulps=BACKWARD)


def test_every_name() -> None:
    x = grid(3, 4)
    functions: list[Callable[[Tensor], Any]] = [
        lambda x: x.softmax(1),
        lambda x: torch.softmax(x, 1),
        lambda x: torch.special.softmax(x, 1),
        lambda x: torch.nn.Softmax(dim=1)(x),
        lambda x: torch.nn.Softmin(dim=1)(x),
        lambda x: F.softmax(x.float(), 1, dtype=torch.float64),
    ]
    for f in functions:
        matches(f, x, ulps=SOFTMAX, grad_ulps=BACKWARD)
    functions = [
        lambda x: x.log_softmax(1),
        lambda x: torch.special.log_softmax(x, 1),
        lambda x: torch.nn.LogSoftmax(dim=1)(x),
        lambda x: x.logsumexp(1),
        lambda x: torch.special.logsumexp(x, 1),
        lambda x: torch.logsumexp(input=x, dim=1),
    ]
    for f in functions:
        matches(f, x, ulps=2, grad_ulps=30)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 0), (1, 1)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    matches(lambda x: torch.softmax(x, -1), grid(*shape), ulps=2, grad_ulps=8)
    matches(lambda x: torch.log_softmax(x, 0), grid(*shape), ulps=2, grad_ulps=8)


def test_of_pending_products_and_of_averages() -> None:
    x, y = grid(3, 4), grid(4, 5, seed=1)
    matches(lambda x, y: ((x @ y) / 2).softmax(-1), x, y, ulps=SOFTMAX, grad_ulps=90)
    matches(lambda x: (x > 0).float().softmax(-1), x, ulps=SOFTMAX, backward=False)


@pytest.mark.parametrize("dim", [0, (0, 2), (1, 2), (-1, 0), (0, 1, 2)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_logsumexp(dim: int | tuple[int, ...], keepdim: bool) -> None:
    matches(lambda x: torch.logsumexp(x, dim, keepdim), grid(3, 2, 4), ulps=2, grad_ulps=BACKWARD)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_logcumsumexp(dim: int) -> None:
    matches(lambda x: torch.logcumsumexp(x, dim), grid(3, 2, 4, low=-4, high=4), ulps=2, grad_ulps=60)
    matches(lambda x: x.logcumsumexp(-1), grid(), ulps=0, grad_ulps=0)


def test_logaddexp() -> None:
    matches(torch.logaddexp, grid(3, 1), grid(4, seed=1), ulps=2, grad_ulps=40)


def test_wide_rows_and_large_numbers() -> None:
    matches(lambda x: x.softmax(-1), grid(2, 700, low=-9, high=9), ulps=SOFTMAX, grad_ulps=BACKWARD)
    matches(lambda x: x.log_softmax(-1), grid(4, 6, low=-(2**13), high=2**13), ulps=2, backward=False)


MASK = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 1], [0, 0, 0, 0]]).bool()
MASKS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.masked_fill(MASK, -math.inf),
    lambda x: torch.masked_fill(x, MASK, torch.finfo(x.dtype).min),
    lambda x: x.masked_fill(MASK[0], float("-inf")),
    lambda x: x.transpose(0, 1).masked_fill(MASK.t(), float("-inf")).transpose(0, 1),
    lambda x: (x * 1).masked_fill_(MASK, -math.inf),
    lambda x: x.masked_fill(MASK, torch.tensor(-math.inf)),
    lambda x: torch.where(MASK, torch.tensor(-math.inf, dtype=x.dtype), x),
    lambda x: torch.where(~MASK, x, -math.inf),
    lambda x: torch.where(condition=~MASK, input=x, other=torch.tensor(-math.inf)),
    lambda x: torch.masked_fill(input=x, mask=MASK, value=-math.inf),
    lambda x: x.where(~MASK, torch.tensor(torch.finfo(x.dtype).min, dtype=x.dtype)),
    lambda x: torch.where(~MASK[None], x, -math.inf)[0],
    lambda x: x + torch.zeros(3, 4, dtype=x.dtype).masked_fill(MASK, -math.inf),
    lambda x: x + torch.zeros(3, 4).masked_fill(MASK, torch.finfo(torch.float32).min),
]
"""Ways in which programs hide entries."""


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: Callable[[Tensor], Tensor]) -> None:
    x = grid(3, 4, low=-3, high=3)
    matches(lambda x: mask(x).softmax(-1), x, ulps=SOFTMAX, grad_ulps=BACKWARD)
    matches(lambda x: mask(x).log_softmax(-1)[:, 2], x, ulps=2, grad_ulps=40)


@pytest.mark.parametrize("mask", [MASKS[i] for i in (0, 4, 6, 7, 10)])
def test_what_is_hidden_costs_no_exponential(mask: Callable[[Tensor], Tensor], session: Session) -> None:
    x = encml.share(grid(3, 4))
    hidden, full = mask(x), encml.share(grid(3, 4))
    with session.ledger.measure() as less:
        hidden.softmax(-1)
    with session.ledger.measure() as more:
        full.softmax(-1)
    assert more[0].bytes_per_party - less[0].bytes_per_party > 100 * int(MASK.sum())


def test_what_masked_fill_knows_is_forgotten_when_the_result_is_written_over() -> None:
    x = encml.share(grid(3, 4)).masked_fill(MASK, -math.inf)
    x.copy_(encml.share(grid(3, 4, seed=1)))
    near(x.softmax(-1).reveal(), grid(3, 4, seed=1).softmax(-1), SOFTMAX)
    y = encml.share(grid(3, 4)).masked_fill(MASK, -math.inf)
    near((y + y.detach() * 0 + 0).softmax(-1).reveal(), grid(3, 4).masked_fill(MASK, -math.inf).softmax(-1), SOFTMAX)


def test_masked_fill_with_other_values() -> None:
    matches(lambda x: x.masked_fill(MASK, 0.5).softmax(-1), grid(3, 4), ulps=SOFTMAX, grad_ulps=BACKWARD)
    matches(lambda x: x.masked_fill(MASK, torch.tensor(0.25)), grid(3, 4), ulps=0, grad_ulps=0)


def test_a_secret_mask() -> None:
    mask = encml.share(MASK.double()) > 0.5
    found = encml.share(grid(3, 4)).masked_fill(mask, -math.inf).softmax(-1)
    near(found.reveal(), grid(3, 4).masked_fill(MASK, -math.inf).softmax(-1), SOFTMAX)


def test_double_backward() -> None:
    x = grid(3, 4)

    def second(x: Tensor) -> Tensor:
        (first,) = torch.autograd.grad((x.softmax(-1) ** 2).sum(), x, create_graph=True)
        return first

    matches(second, x, ulps=20, grad_ulps=100)

    def of_logs(x: Tensor) -> Tensor:
        (first,) = torch.autograd.grad((x.log_softmax(-1) ** 2).sum(), x, create_graph=True)
        return first

    matches(of_logs, x, ulps=60, grad_ulps=400)


def test_func_grad_and_vmap() -> None:
    x = grid(3, 4)

    def f(x: Tensor) -> Tensor:
        return (x.log_softmax(-1) * x.softmax(-1)).sum()

    matches(lambda x: torch.func.grad(f)(x), x, ulps=60, backward=False)
    matches(lambda x: torch.func.vmap(lambda row: row.softmax(-1))(x), x, ulps=SOFTMAX, backward=False)


def test_under_inference_mode() -> None:
    with torch.inference_mode():
        x = encml.share(grid(3, 4))
        near(x.softmax(-1).reveal(), grid(3, 4).softmax(-1), SOFTMAX)
        near(x.log_softmax(-1).reveal(), grid(3, 4).log_softmax(-1), 2)
        near(x.logsumexp(-1).reveal(), grid(3, 4).logsumexp(-1), 2)


def test_of_whole_numbers_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="floating point"):
        (encml.share(grid(3, 4)) > 0).softmax(-1)
    with pytest.raises(IndexError, match="out of range"):
        encml.share(grid(3, 4)).softmax(2)


@pytest.mark.parametrize(
    ("function", "forward", "backward"), [(F.softmax, 50, 3), (F.log_softmax, 47, 3), (torch.logsumexp, 47, 3)]
)
def test_rounds(function: Callable[..., Tensor], forward: int, backward: int, session: Session) -> None:
    x = encml.share(grid(1, 10)).requires_grad_()
    with session.ledger.measure() as spent:
        y = function(x, 1)
    assert spent[0].rounds == forward
    assert spent[0].bytes_per_party <= 4700
    upstream = encml.share(torch.ones(y.shape))
    with session.ledger.measure() as spent:
        y.backward(upstream)
    assert spent[0].rounds == backward


def test_backward_of_a_log_softmax_computes_no_exponential(session: Session) -> None:
    x = encml.share(grid(64, 10)).requires_grad_()
    y = x.log_softmax(1)
    upstream = encml.share(torch.ones(y.shape))
    with session.ledger.measure() as first:
        y.backward(upstream, retain_graph=True)
    assert first[0].bytes_per_party / 640 < 12
    with session.ledger.measure() as again:
        torch.autograd.grad(y, x, upstream)
    assert again[0].rounds == 0
