"""Reading and writing by a secret index: values and gradients against the public index; costs; out of range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import grid, matches, near
from torch import Tensor, nn

import encml
from encml import Session, UnsupportedOperation
from encml.errors import InvalidTensor

Function = Callable[..., Any]


def index(*shape: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 16, 33])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (70,)])
def test_one_hot(classes: int, shape: tuple[int, ...]) -> None:
    i = index(*shape, below=classes)
    expected = F.one_hot(i, classes)
    for shared in (encml.share(i), encml.share(i.float()), encml.share(i.t() if i.ndim == 2 else i)):
        if shared.shape != i.shape:
            shared = shared.t()
        found = F.one_hot(shared, classes)
        assert found.dtype == torch.int64
        near(found.reveal(), expected, 0)


def test_out_of_range_is_nothing() -> None:
    i = torch.tensor([-1, 3, 0, 4, 2**29, -(2**29), 7, 8])
    expected = torch.zeros(8, 3, dtype=torch.int64)
    expected[2, 0] = 1
    near(F.one_hot(encml.share(i), 3).reveal(), expected, 0)
    table = grid(3, 2)
    near(encml.share(table)[encml.share(i)].reveal(), expected.double() @ table, 0)
    near(torch.gather(encml.share(table[:, 0]), 0, encml.share(i)).reveal(), expected.double() @ table[:, 0], 0)


def test_classes_must_be_given_and_masks_do_not_index() -> None:
    with pytest.raises(InvalidTensor, match="num_classes"):
        F.one_hot(encml.share(torch.tensor([1, 2])))
    x = encml.share(grid(3))
    with pytest.raises(UnsupportedOperation, match="mask"):
        x[x > 0]
    with pytest.raises(UnsupportedOperation, match="one index at a time"):
        encml.share(grid(3, 3))[encml.share(torch.tensor([0])), encml.share(torch.tensor([1]))]


CASES: dict[str, tuple[Function, tuple[int, ...], Tensor]] = {
    "gather": (lambda x, i: torch.gather(x, 0, i), (5, 3), index(4, 3, below=5)),
    "gather of fewer": (lambda x, i: torch.gather(x, 1, i), (5, 4), index(2, 3, below=4)),
    "gather in the middle": (lambda x, i: torch.gather(x, -2, i), (2, 5, 3), index(2, 7, 3, below=5)),
    "gather of a scalar": (lambda x, i: torch.gather(x, 0, i), (), torch.tensor(0)),
    "take_along_dim": (lambda x, i: torch.take_along_dim(x, i, 1), (3, 4), index(1, 2, below=4)),
    "take_along_dim of all": (lambda x, i: torch.take_along_dim(x, i), (3, 4), index(5, below=12)),
    "index_select": (lambda x, i: torch.index_select(x, 1, i), (3, 4, 2), index(5, below=4)),
    "index": (lambda x, i: x[i], (4, 3), index(6, below=4)),
    "index by a matrix": (lambda x, i: x[:, i], (2, 4, 3), index(2, 2, below=4)),
    "index_select of a vector": (lambda x, i: x.index_select(0, i), (4,), torch.tensor([2])),
    "take": (lambda x, i: x.take(i), (4, 3), index(2, 5, below=12)),
    "take one": (lambda x, i: x.take(i), (4, 3), index(below=12)),
    "put": (lambda x, i: x.put(i, x[0, :2] * 2), (4, 3), torch.tensor([7, 2])),
    "embedding": (lambda x, i: F.embedding(i, x), (6, 3), index(2, 5, below=6)),
    "embedding with padding": (lambda x, i: F.embedding(i, x, padding_idx=1), (4, 3), index(2, 5, below=4)),
    "scatter_add": (lambda x, i: torch.zeros_like(x).scatter_add(1, i, x[:, :3]), (5, 4), index(5, 3, below=4)),
    "scatter_add to less": (lambda x, i: x.scatter_add(0, i, 2 * x[1:3, :3]), (5, 4), index(2, 3, below=5)),
    "index_add": (lambda x, i: x.index_add(0, i, x[:3] * 2), (5, 4), index(3, below=5)),
    "index_add of more": (lambda x, i: x.index_add(1, i, x[:, :3], alpha=2), (5, 4), index(3, below=4)),
    "scatter": (lambda x, i: x.scatter(0, i, 2 * x), (5, 4), torch.stack([torch.randperm(5) for _ in range(4)], 1)),
    "scatter a number": (lambda x, i: x.scatter(1, i, 0.5), (5, 4), index(5, 1, below=4)),
    "index_put": (lambda x, i: x.index_put((i,), 2 * x[:2]), (5, 4), torch.tensor([3, 1])),
    "index_put that adds": (lambda x, i: x.index_put((i,), x[:3], accumulate=True), (5, 4), torch.tensor([3, 1, 3])),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("hidden", ["index", "float index", "both", "neither"])
def test_like_the_public_index(name: str, hidden: str) -> None:
    f, shape, i = CASES[name]
    x = grid(*shape, seed=5)
    if hidden == "index":
        if "scatter" in name or "put" in name or "add" in name:
            near(f(encml.share(x), encml.share(i)).reveal(), f(x, i), 0)
        else:
            near(f(x, encml.share(i)).reveal(), f(x, i), 0)
    elif hidden == "neither":
        matches(lambda t: f(t, i), x, ulps=0, grad_ulps=0)
    else:
        picked = encml.share(i) if hidden == "both" else encml.share(i.double())
        matches(lambda t: f(t, picked if isinstance(t, encml.SharedTensor) else i), x, ulps=0, grad_ulps=0)


@pytest.mark.parametrize("shape", [(2,), (4, 1), (1, 1, 1), ()])
def test_indices_that_do_not_fit(shape: tuple[int, ...]) -> None:
    x, i = encml.share(grid(3, 2)), encml.share(torch.zeros(shape, dtype=torch.int64))
    for f in (lambda: x.gather(1, i), lambda: x.scatter_add(1, i, x), lambda: x.scatter(1, i, 1.0)):
        with pytest.raises(InvalidTensor, match="dimensions"):
            f()


def test_assignment() -> None:
    a, i = grid(5, 4), torch.tensor([3, 1])
    x = encml.share(a)
    x[encml.share(i)] = 2.0
    expected = a.clone()
    expected[i] = 2.0
    near(x.reveal(), expected, 0)
    x.scatter_(0, encml.share(i[None]), encml.share(grid(1, 2, seed=1)))
    near(x.reveal(), expected.scatter(0, i[None], grid(1, 2, seed=1)), 0)


def test_assignment_by_a_mask() -> None:
    a, b = grid(5, 4), grid(5, seed=1)
    for mask in (a > 0, b > 0):
        x, y = encml.share(a), a.clone()
        x[encml.share(mask)] = 1.5
        y[mask] = 1.5
        near(x.reveal(), y, 0)
        x.index_put_((encml.share(mask),), encml.share(torch.tensor(2.0)), accumulate=True)
        y.index_put_((mask,), torch.tensor(2.0).double(), accumulate=True)
        near(x.reveal(), y, 0)
    x[:, encml.share(a[0] > 0)] = 0.0
    y[:, a[0] > 0] = 0.0
    near(x.reveal(), y, 0)
    with pytest.raises(UnsupportedOperation, match="mask"):
        x[encml.share(a > 0)] = torch.ones(3)
    with pytest.raises((InvalidTensor, IndexError)):
        x[encml.share(grid(3) > 0)] = 1.0


def test_embedding_modules() -> None:
    module = nn.Embedding(7, 3, padding_idx=2)
    i = index(4, 5, below=7)
    for chosen in (i, encml.share(i)):
        shared = encml.share(module)
        found = shared(chosen)
        near(found.reveal().detach(), module(i).detach(), 1)
        module.zero_grad()
        module(i).sum().backward()
        found.sum().backward()
        near(shared.weight.grad.reveal(), module.weight.grad, 0)
    with pytest.raises(UnsupportedOperation, match="scale_grad_by_freq"):
        F.embedding(encml.share(i), encml.share(module).weight, scale_grad_by_freq=True).sum().backward()
    weight = grid(7, 3)
    matches(lambda w: F.embedding(i, w, scale_grad_by_freq=True), weight, ulps=0, grad_ulps=2)


def test_indices_of_a_sort_carry_other_values() -> None:
    x, y = grid(4, 6), grid(4, 6, seed=1)
    order, shared = x.argsort(1), encml.share(x).argsort(1)
    near(torch.gather(encml.share(y), 1, shared).reveal(), torch.gather(y, 1, order), 0)
    near(torch.take_along_dim(encml.share(y), shared, 1).reveal(), torch.gather(y, 1, order), 0)
    near(torch.gather(encml.share(y), 1, shared[:, :2]).reveal(), torch.gather(y, 1, order[:, :2]), 0)
    some = order[:2] % 4
    near(torch.gather(encml.share(y), 0, encml.share(some)).reveal(), torch.gather(y, 0, some), 0)


@pytest.mark.parametrize(
    ("f", "rounds", "most"),
    [
        (lambda x, i: torch.gather(x, 1, i), 3, 16.1 * 64),
        (lambda x, i: torch.gather(x, 1, i[:, :2]), 30, 64 * 200),
    ],
)
def test_cost_after_a_sort(f: Function, rounds: int, most: float, session: Session) -> None:
    x = encml.share(grid(8, 8))
    i = x.argsort(1)
    before = session.ledger.total
    f(x, i)
    spent = session.ledger.total - before
    assert spent.rounds <= rounds
    assert spent.bytes_per_party < most


def test_cost_of_an_argmax_as_an_index(session: Session) -> None:
    """The bits are there: conversion alone, 8 B a class; an unknown index costs its bits and their range first."""
    x = encml.share(grid(64, 10))
    best = x.argmax(1)
    before = session.ledger.total
    F.one_hot(best, 10)
    spent = session.ledger.total - before
    assert spent.rounds == 2
    assert spent.bytes_per_party == 8 * 64 * 10
    i = encml.share(index(64, below=10))
    before = session.ledger.total
    F.one_hot(i, 10)
    spent = session.ledger.total - before
    assert spent.rounds <= 13
    assert spent.bytes_per_party < 64 * (8 * 10 + 60)
    before = session.ledger.total
    F.one_hot(i, 10)
    assert (session.ledger.total - before).rounds == 2
