"""Largest, smallest, sorted, picked by rank: values, indices, gradients and layouts against float64; costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from party_threads import run_apart
from reference import grid, matches, near
from torch import Tensor

import encml
from encml import Session, SharedTensor, UnsupportedOperation
from encml.errors import InvalidTensor
from encml.mpc.parties import Parties

Function = Callable[..., Any]
CASES = [
    ((7,), 0),
    ((3, 5), 1),
    ((3, 5), 0),
    ((3, 5), -1),
    ((2, 3, 4), 1),
    ((4, 1), 1),
    ((), 0),
    ((0, 3), 1),
    ((1,), 0),
]
SHAPES = pytest.mark.parametrize(("shape", "dim"), CASES)

WITH_INDEX: dict[str, Function] = {
    "max": torch.max,
    "min": torch.min,
    "sort": lambda x, dim: torch.sort(x, dim),
    "sort descending": lambda x, dim: torch.sort(x, dim, descending=True),
    "topk": lambda x, dim: torch.topk(x, min(2, x.shape[dim] if x.ndim else 1), dim),
    "smallest": lambda x, dim: torch.topk(x, min(2, x.shape[dim] if x.ndim else 1), dim, largest=False),
    "kthvalue": lambda x, dim: torch.kthvalue(x, min(2, x.shape[dim] if x.ndim else 1), dim),
    "kthvalue kept": lambda x, dim: torch.kthvalue(x, 1, dim, keepdim=True),
    "median": torch.median,
    "nanmedian": torch.nanmedian,
    "max kept": lambda x, dim: torch.max(x, dim, keepdim=True),
}
NAMES = pytest.mark.parametrize("name", WITH_INDEX)


@NAMES
@SHAPES
def test_with_indices(name: str, shape: tuple[int, ...], dim: int) -> None:
    """No two elements are equal here, so that there is one answer."""
    f, x = WITH_INDEX[name], grid(*shape, seed=sum(shape))
    assert x.unique().numel() == x.numel()
    expected, found = f(x, dim), f(encml.share(x), dim)
    near(found[0].reveal(), expected[0], 0)
    assert isinstance(found[1], SharedTensor)
    assert found[1].dtype == torch.int64
    near(found[1].reveal(), expected[1], 0)
    matches(lambda t: f(t, dim)[0], x, ulps=0, grad_ulps=0)


@NAMES
def test_layouts(name: str) -> None:
    f = WITH_INDEX[name]
    for look in (lambda x: x.t(), lambda x: x[:, ::2], lambda x: x.unflatten(1, (2, 3)).movedim(2, 0)):
        matches(
            lambda x, look=look: f(look(x), 1)[0], grid(4, 6, seed=3), ulps=0, grad_ulps=0, strides="sort" not in name
        )


WITHOUT: dict[str, Function] = {
    "amax": torch.amax,
    "amin": torch.amin,
    "max": torch.max,
    "min": torch.min,
    "aminmax": torch.aminmax,
    "median": torch.median,
    "amax of two": lambda x: x.amax((0, -1)),
    "amin of one kept": lambda x: x.amin(1, keepdim=True),
    "aminmax of one": lambda x: torch.aminmax(x, dim=0),
    "msort": torch.msort,
    "cloned argsort": lambda x: torch.argsort(x.detach(), 1, descending=True).float() * x,
}


@pytest.mark.parametrize("name", WITHOUT)
def test_without_indices(name: str) -> None:
    """Gradients of reductions share what ties get, by a division by their secret number: one unit off each."""
    f = WITHOUT[name]
    matches(f, grid(3, 4, 5, seed=2), ulps=0, grad_ulps=3)
    matches(lambda x: f(x.movedim(0, 2)), grid(3, 4, 5, seed=2), ulps=0, grad_ulps=3)
    if "of" not in name and "arg" not in name:
        matches(f, grid(70, seed=2), ulps=0, grad_ulps=3)
        matches(f, grid(1, seed=2), ulps=0, grad_ulps=3)
        if name != "msort":
            matches(f, grid(seed=2), ulps=0, grad_ulps=3)


def test_ties_share_gradients_or_the_first_has_it() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]).double()
    matches(lambda t: t.amax(1), x, ulps=0, grad_ulps=3)
    matches(torch.max, x, ulps=0, grad_ulps=3)
    matches(lambda t: t.max(1).values, x, ulps=0, grad_ulps=0)
    near(encml.share(x).argmax(1).reveal(), torch.tensor([1, 0]), 0)
    near(encml.share(-x).argmin(1).reveal(), torch.tensor([1, 0]), 0)
    values, indices = encml.share(x).sort(1, descending=True)
    near(values.reveal(), x.sort(1, descending=True).values, 0)
    near(indices.reveal(), x.sort(stable=True, dim=1, descending=True).indices, 0)


def test_who_is_the_largest_takes_one_comparison(session: Session) -> None:
    a = grid(64, 5).round()
    x = encml.share(a)
    most = {}
    for name, found in (("amax", x.amax(1, keepdim=True)), ("amin", x.amin()), ("max", x.max(0).values[None])):
        before = session.ledger.total
        same = x == found
        most[name] = (session.ledger.total - before).bytes_per_party / a.numel()
        near(same.reveal(), a == found.reveal(), 0)
    assert max(most.values()) < 31
    # Nothing is known of these.
    square = encml.share(a[:5])
    for found in (square.amax(1), square.amax(1, keepdim=True).t(), square.amax(1, keepdim=True) - 1):
        near((square == found).reveal(), a[:5] == found.reveal(), 0)
    largest = square.amax(1, keepdim=True)
    square[0] = 9
    near((square == largest).reveal(), square.reveal() == largest.reveal(), 0)


@pytest.mark.parametrize("f", [torch.argmax, torch.argmin])
def test_places(f: Function) -> None:
    x = grid(3, 4, 5, seed=4)
    shared = encml.share(x)
    for arguments in ({}, {"dim": 1}, {"dim": -1}, {"dim": 0, "keepdim": True}, {"keepdim": True}):
        near(f(shared, **arguments).reveal(), f(x, **arguments), 0)
    near(f(shared.t().t() if shared.ndim == 2 else shared.movedim(0, 2)).reveal(), f(x.movedim(0, 2)), 0)
    near(torch.argsort(shared, dim=1).reveal(), torch.argsort(x, dim=1), 0)


def test_of_integers_bools_and_pending_products() -> None:
    a = torch.tensor([[3, -1, 7], [7, 7, 0]])
    x = encml.share(a)
    near(x.max(1).values.reveal(), a.max(1).values, 0)
    assert x.amax().dtype == torch.int64
    near(x.sort(1).values.reveal(), a.sort(1).values, 0)
    near(encml.share(a > 0).amax(1).reveal(), (a > 0).amax(1), 0)
    p = grid(3, 4)
    near((encml.share(p) * encml.share(p)).sort(1).values.reveal(), (p * p).sort(1).values, 1)
    near((encml.share(p) * encml.share(p)).max().reveal(), (p * p).max(), 1)


def test_an_index_is_not_worked_out_to_be_detached(session: Session) -> None:
    """Or one party that looks at it by itself would send messages that nobody expects."""
    x = grid(3, 5)
    index = encml.share(x).argmax(1)
    rounds = session.ledger.rounds
    detached = [index.detach(), index.data, torch.ops.aten.alias(index)]
    assert session.ledger.rounds == rounds
    for found in detached:
        assert (found.shape, found.stride(), found.dtype) == (index.shape, index.stride(), index.dtype)
        near(found.reveal(), x.argmax(1), 0)
    detached[0].fill_(2)
    near(index.reveal(), torch.full((3,), 2), 0)


@NAMES
def test_the_result_of_one_element_has_memory_of_its_own(name: str) -> None:
    x = encml.share(grid(1, 3))
    values, _ = WITH_INDEX[name](x, 0)
    values.view(-1)[0] = 5.0
    near(x.reveal(), grid(1, 3), 0)
    values, _ = WITH_INDEX[name](x, 0)
    x[0, 0] = 7.0
    near(values.reveal().view(-1), grid(1, 3).view(-1), 0)


@pytest.mark.parametrize("f", [torch.cummax, torch.cummin])
def test_running(f: Function) -> None:
    for shape, dim in [*CASES, ((2, 9), 1)]:
        for x in (grid(*shape, seed=sum(shape)), grid(*shape, seed=1).round()):
            expected, found = f(x, dim), f(encml.share(x), dim)
            near(found[0].reveal(), expected[0], 0)
            near(found[1].reveal(), expected[1], 0)
            if x.numel():
                matches(lambda t, dim=dim: f(t, dim)[0], x, ulps=0, grad_ulps=0)


def work(parties: Parties | None) -> list[SharedTensor]:
    """One of each way in which a handler treats shares."""
    a, b = grid(4, 6), torch.tensor([3, 1, 0])
    x = encml.share(a if parties is None or parties.plays(0) else a * 0).requires_grad_()
    i = encml.share(b if parties is None or parties.plays(1) else b * 0, owner=1)
    largest, places = x.max(1)
    results: list[Any] = [
        largest, places, x.argmin(0), *x.sort(1), *x.topk(2, 0), x.amin(), x.cummax(1)[1], x.clamp(-1, 0.5), x.abs(),
        x.sign(), torch.maximum(x, x.flip(0)), torch.where(x > 0, x, a), x[i], F.one_hot(i, 5), F.embedding(i, x),
        x.gather(0, i[None]), x.scatter(0, i[None], 0.5), F.rrelu(x, training=True), F.hardswish(x),
    ]  # fmt: skip
    (largest.sum() + x.sort(1)[0][:, 2].sum() + x[i].sum() + x.clamp(0, 1).sum()).backward()
    return [*results, x.grad]


def test_parties_apart_hold_the_shares_of_one_process() -> None:
    def apart(parties: Parties) -> list[Tensor]:
        with Session(parties.net, seed=5):
            return [x._secret.terms.clone() for x in work(parties)]

    with Session(seed=5):
        together = [x._secret for x in work(None)]
        results, _ = run_apart(apart, 5)
        for number, expected in enumerate(together):
            for rank, found in enumerate(results):
                held = [rank] if expected.pending else [rank, (rank + 1) % 3]
                assert torch.equal(found[number], expected.terms[held]), f"result {number} differs at party {rank}"


def test_what_is_refused() -> None:
    x = encml.share(torch.zeros(0, 3))
    for f in (lambda: x.amax(0), lambda: x.max(), lambda: x.argmax(0), lambda: x.median(0), lambda: x.topk(4, 1)):
        with pytest.raises(InvalidTensor):
            f()
    with pytest.raises(IndexError):
        encml.share(grid(3)).amax(2)
    with Session(fraction_bits=4), pytest.raises(UnsupportedOperation, match="4 fraction bits leave 4"):
        encml.share(torch.zeros(17)).sort()
    with Session(fraction_bits=4):
        near(encml.share(torch.arange(16.0).flip(0)).sort().values.reveal(), torch.arange(16.0), 0)


@pytest.mark.parametrize(
    ("f", "rounds", "most"),
    [
        (lambda x: x.max(1).values, 14, 1540),
        (lambda x: x.amax(1), 14, 1540),
        (lambda x: torch.aminmax(x, dim=1), 14, 3050),
        (lambda x: x.argmax(1)._secret.payload, 14, 1520),
        (lambda x: x.sort(1), 12, 1780),
    ],
)
def test_cost_of_few_rows(f: Function, rounds: int, most: float, session: Session) -> None:
    """Ten classes of one example: all meet in one batch, 45 pairs in a word of 64 bits."""
    x = encml.share(grid(1, 10))
    before = session.ledger.total
    f(x)
    spent = session.ledger.total - before
    assert spent.rounds == rounds
    assert spent.bytes_per_party < most


def test_cost_of_many_rows(session: Session) -> None:
    x = encml.share(grid(6400, 4))
    before = session.ledger.total
    x.max(1)
    spent = session.ledger.total - before
    assert spent.rounds == 20
    assert spent.bytes_per_party / 6400 < 101


@pytest.mark.parametrize(
    ("f", "rounds"), [(lambda x: x.max(1).values, 4), (lambda x: x.sort(1).values, 3), (lambda x: x.topk(3).values, 3)]
)
def test_backward_compares_nothing(f: Function, rounds: int, session: Session) -> None:
    x = encml.share(grid(4, 10)).requires_grad_()
    y = f(x)
    upstream = encml.share(grid(*y.shape, seed=1))
    before = session.ledger.total
    y.backward(upstream)
    spent = session.ledger.total - before
    assert spent.rounds == rounds
    assert spent.bytes_per_party < 40 * 20
