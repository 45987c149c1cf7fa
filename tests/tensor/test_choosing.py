"""Element-wise choices against float64: values, gradients, layouts; and that no comparison is made twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import ULP, grid, matches, near
from torch import Tensor, nn

import encml
from encml import Session, UnsupportedOperation
from encml.errors import InvalidTensor

SHAPES = [(), (0,), (1,), (70,), (3, 5), (2, 0, 3)]
EDGES = torch.tensor([-3.0, -1.0, -0.5, -ULP, 0.0, ULP, 0.5, 1.0, 3.0, 6.0, 6 + ULP, 2.0**29, -(2.0**29)]).double()
Function = Callable[..., Any]

ONE: dict[str, tuple[Function, float, float]] = {
    "abs": (torch.abs, 0, 0),
    "sign": (torch.sign, 0, 0),
    "relu": (torch.relu, 0, 0),
    "relu6": (F.relu6, 0, 0),
    "hardtanh": (F.hardtanh, 0, 0),
    "hardtanh of other bounds": (lambda x: F.hardtanh(x, -0.25, 1.5), 0, 0),
    "clamp": (lambda x: x.clamp(-0.5, 1), 0, 0),
    "clamp from below": (lambda x: x.clamp(min=-0.5), 0, 0),
    "clamp from above": (lambda x: x.clamp(max=0.5), 0, 0),
    "clamp_min": (lambda x: x.clamp_min(1), 0, 0),
    "clamp_max": (lambda x: x.clamp_max(-1), 0, 0),
    "clamp that crosses": (lambda x: x.clamp(1, -1), 0, 0),
    "clamp between tensors": (lambda x: x.clamp(torch.tensor(-0.5), torch.tensor(1.0)), 0, 0),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.25), 1, 1),
    "leaky_relu of slope 0": (lambda x: F.leaky_relu(x, 0.0), 0, 0),
    "threshold": (lambda x: F.threshold(x, 0.5, -20), 0, 0),
    "rrelu": (lambda x: F.rrelu(x, 0.25, 0.75), 1, 1),
    "hardshrink": (F.hardshrink, 0, 0),
    "hardshrink of 0": (lambda x: F.hardshrink(x, 0), 0, 0),
    "softshrink": (F.softshrink, 0, 0),
    "where": (lambda x: torch.where(x > 0.25, x, -x), 0, 0),
    "where by a number": (lambda x: torch.where(x > 0.25, x, 1.5), 0, 0),
    "where of numbers": (lambda x: torch.where(x > 0.25, 0.5, 1.5) * x, 1, 1),
    "masked_fill": (lambda x: x.masked_fill(x > 0.25, 7), 0, 0),
    "masked_fill_": (lambda x: (x * 1).masked_fill_(x > 0.25, 7), 0, 0),
    "abs_": (lambda x: (x * 1).abs_(), 0, 0),
    "clamp_": (lambda x: (x * 1).clamp_(-1, 0.5), 0, 0),
    "hardtanh_": (lambda x: F.hardtanh(x * 1, inplace=True), 0, 0),
    "relu6_": (lambda x: F.relu6(x * 1, inplace=True), 0, 0),
    "leaky_relu_": (lambda x: F.leaky_relu(x * 1, 0.5, inplace=True), 1, 1),
    "threshold_": (lambda x: F.threshold(x * 1, 0.5, 2, inplace=True), 0, 0),
    "pending": (lambda x: (x * 0.5).abs(), 1, 1),
}
ALL = pytest.mark.parametrize("name", ONE)


@ALL
def test_values_and_gradients(name: str) -> None:
    f, ulps, grad_ulps = ONE[name]
    for i, shape in enumerate(SHAPES):
        matches(f, grid(*shape, seed=i), ulps=ulps, grad_ulps=grad_ulps)


@ALL
def test_at_the_edges(name: str) -> None:
    f, ulps, grad_ulps = ONE[name]
    matches(f, EDGES if ulps == 0 else EDGES[:-2], ulps=ulps, grad_ulps=grad_ulps)


@ALL
def test_layouts(name: str) -> None:
    f, ulps, grad_ulps = ONE[name]
    for look in (lambda x: x.t(), lambda x: x[:, ::2], lambda x: x[:1].expand(3, 6)):
        matches(lambda x, look=look: f(look(x)), grid(4, 6, seed=3), ulps=ulps, grad_ulps=3 * grad_ulps)


@pytest.mark.parametrize("f", [F.hardsigmoid, F.hardswish])
def test_hard_curves(f: Function) -> None:
    """One division by 6, whose factor has 18 bits; hardswish is truncated twice, its slope once."""
    x = torch.cat([grid(70, low=-8, high=8), torch.tensor([-3.0, 3.0, 0.0, -3 + ULP, 3 - ULP]).double()])
    matches(f, x, ulps=7, grad_ulps=5)
    matches(lambda x: f(x.t()), grid(3, 5), ulps=7, grad_ulps=5)


def test_prelu() -> None:
    matches(F.prelu, grid(70), torch.tensor([0.25]).double(), ulps=1, grad_ulps=[1, 70])
    matches(F.prelu, grid(2, 3, 4), grid(3, seed=1), ulps=1, grad_ulps=[1, 8])
    matches(F.prelu, grid(2, 3, 4), grid(3, seed=1), ulps=1, grad_ulps=[1, 8], public=(1,))
    matches(F.prelu, grid(2, 3, 4), grid(3, seed=1), ulps=1, grad_ulps=[1, 8], public=(0,))


TWO: dict[str, Function] = {
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "max": torch.max,
    "clamp_min": lambda x, y: x.clamp_min(y),
    "clamp_max": lambda x, y: x.clamp_max(y),
    "clamp": lambda x, y: x.clamp(y, y + 0.5),
    "clamp that crosses": lambda x, y: x.clamp(y + 0.5, y),
    "where": lambda x, y: torch.where(torch.gt(x, y), x, 2 * y),
    "masked_fill": lambda x, y: x.masked_fill(y.detach() > 0, 1.5),
}


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("public", [(), (0,), (1,)])
def test_of_two(name: str, public: tuple[int, ...]) -> None:
    f = TWO[name]
    if name == "masked_fill" and public == (0,):
        return
    for shapes in [((7,), (7,)), ((3, 1), (4,)), ((), ()), ((2, 3), ()), ((0,), (1,)), ((70,), (70,))]:
        if name in ("masked_fill",) and len(shapes[0]) < len(shapes[1]):
            continue
        a, b = (grid(*shape, seed=i).mul(4).round().div(4) for i, shape in enumerate(shapes))
        if name == "masked_fill" and torch.broadcast_shapes(a.shape, b.shape) != a.shape:
            continue
        matches(f, a, b, ulps=0, grad_ulps=0, public=public)
    matches(lambda x, y: f(x.t(), y), grid(3, 4), grid(4, 3, seed=1), ulps=0, grad_ulps=0, public=public)


def test_public_conditions_are_local(session: Session) -> None:
    a, mask = grid(4, 3), grid(4, 3, seed=1) > 0
    matches(lambda x: torch.where(mask, x, 2.5), a, ulps=0, grad_ulps=0)
    matches(lambda x: torch.where(mask, 2.5, x.t().t()), a, ulps=0, grad_ulps=0)
    matches(lambda x: x.masked_fill(mask, -1), a, ulps=0, grad_ulps=0)
    matches(lambda x, y: torch.where(mask, x, y), a, grid(3, seed=3), ulps=0, grad_ulps=0)
    matches(lambda x, y: torch.where(mask, x * y, y), a, grid(4, 3, seed=3), ulps=1, grad_ulps=1)
    x = encml.share(a)
    before = session.ledger.total
    torch.where(mask, x, 0.0)
    x.masked_fill(mask, 2)
    assert (session.ledger.total - before).rounds == 0


def test_secret_conditions() -> None:
    a, b = grid(4, 3), grid(4, 3, seed=1)
    condition = encml.share(b > 0)
    near(torch.where(condition, encml.share(a), encml.share(b)).reveal(), torch.where(b > 0, a, b), 0)
    near(torch.where(condition, a, b).reveal(), torch.where(b > 0, a, b), 0)
    near(torch.where(condition, encml.share(a), 0.5).reveal(), torch.where(b > 0, a, 0.5), 0)
    near(encml.share(a).masked_fill(condition, torch.tensor(2.0)).reveal(), a.masked_fill(b > 0, 2.0), 0)
    with pytest.raises(UnsupportedOperation, match="bools"):
        torch.ops.aten.where.self(encml.share(a), encml.share(a), encml.share(b))


def test_sgn() -> None:
    matches(torch.sgn, EDGES, ulps=0, backward=False)


def test_heaviside_and_tests_for_what_fixed_point_lacks() -> None:
    x, values = EDGES, grid(*EDGES.shape, seed=1)
    matches(torch.heaviside, x, values, ulps=0, backward=False)
    matches(torch.heaviside, x, values, ulps=0, backward=False, public=(0,))
    matches(torch.heaviside, x, values, ulps=0, backward=False, public=(1,))
    shared = encml.share(x)
    for f in (torch.isnan, torch.isinf, torch.isposinf, torch.isneginf):
        assert torch.equal(f(shared), f(x))
    assert (shared < float("inf")).reveal().all()
    assert not (shared == float("-inf")).reveal().any()
    y = x + torch.tensor([0, 1e-3] * 6 + [0.0])
    near(torch.isclose(shared, encml.share(y), atol=1e-2).reveal(), torch.isclose(x, y, atol=1e-2), 0)
    near(torch.isclose(shared, encml.share(y), rtol=0, atol=1e-4).reveal(), torch.isclose(x, y, rtol=0, atol=1e-4), 0)


def test_a_clamp_has_a_bound() -> None:
    with pytest.raises(InvalidTensor, match="bound"):
        encml.share(grid(3)).clamp()


def test_integers_and_bools() -> None:
    a = torch.tensor([-3, 0, 2, 7])
    x = encml.share(a)
    for f in (torch.abs, torch.sign, lambda t: t.clamp(-1, 2), lambda t: t.clamp(0.5, 2.5), torch.relu):
        assert f(x).dtype == f(a).dtype
        near(f(x).reveal(), f(a), 0)
    near(torch.maximum(x, torch.tensor(1)).reveal(), torch.maximum(a, torch.tensor(1)), 0)
    near(torch.sign(encml.share(a > 0)).reveal(), torch.sign(a > 0), 0)


def test_bools_in_place() -> None:
    p, q = grid(9) > 0, grid(9, seed=1) > 0
    for name in ("logical_and_", "logical_or_", "logical_xor_", "bitwise_and_", "bitwise_or_", "bitwise_xor_"):
        near(getattr(encml.share(p), name)(encml.share(q)).reveal(), getattr(p.clone(), name)(q), 0)
    near(encml.share(p).logical_not_().reveal(), ~p, 0)


@pytest.mark.parametrize(
    ("f", "rounds", "most"),
    [
        (torch.abs, 10, 34),
        (torch.sign, 10, 62),
        (lambda x: x.clamp(0, 1), 10, 62),
        (lambda x: x.clamp(min=0.5), 10, 34),
        (F.hardtanh, 10, 62),
        (F.leaky_relu, 12, 41),
        (F.hardshrink, 10, 57),
        (F.softshrink, 10, 62),
        (lambda x: torch.maximum(x, x.detach().flip(0)), 10, 34),
        (lambda x: torch.where(x > 0, x, x.detach()), 11, 39),
    ],
)
def test_cost(f: Function, rounds: int, most: float, session: Session) -> None:
    x = encml.share(grid(6400))
    before = session.ledger.total
    f(x)._secret.replicate()
    spent = session.ledger.total - before
    assert spent.rounds == rounds
    assert spent.bytes_per_party / 6400 < most


@pytest.mark.parametrize(
    ("again", "rounds", "most"),
    [
        (lambda x: x.relu(), 2, 11),
        (lambda x: x.abs(), 2, 11),
        (lambda x: x > 0, 2, 9),
        (lambda x: x.threshold_backward(x, 0) if hasattr(x, "threshold_backward") else x.relu(), 2, 11),
        (lambda x: F.leaky_relu(x), 4, 18),
    ],
)
def test_no_comparison_is_made_twice(again: Function, rounds: int, most: float, session: Session) -> None:
    x = encml.share(grid(6400))
    x.relu()
    before = session.ledger.total
    again(x)
    spent = session.ledger.total - before
    assert spent.rounds == rounds
    assert spent.bytes_per_party / 6400 < most


@pytest.mark.parametrize(
    ("f", "most"),
    [(F.leaky_relu, 18), (F.hardtanh, 11), (F.relu6, 11), (F.hardshrink, 11), (F.softshrink, 11), (F.threshold, 11)],
)
def test_backward_compares_nothing(f: Function, most: float, session: Session) -> None:
    x = encml.share(grid(6400)).requires_grad_()
    y = f(x, 0.5, 0.25) if f is F.threshold else f(x)
    upstream = encml.share(grid(6400, seed=1))
    before = session.ledger.total
    y.backward(upstream)
    assert (session.ledger.total - before).bytes_per_party / 6400 < most


def test_facts_go_with_what_they_were_about() -> None:
    a, b = grid(5), grid(5, seed=1)
    x, y = encml.share(a), encml.share(b)
    near(torch.maximum(x, y).reveal(), torch.maximum(a, b), 0)
    y.neg_()
    near(torch.maximum(x, y).reveal(), torch.maximum(a, -b), 0)
    y[1:].mul_(2)
    near(torch.maximum(x, y).reveal(), torch.maximum(a, torch.cat([-b[:1], -2 * b[1:]])), 0)
    y[2:] = 5
    near(torch.maximum(x, y).reveal(), torch.maximum(a, torch.cat([-b[:1], -2 * b[1:2], 5 + 0 * b[2:]])), 0)
    near((x > 0).reveal(), a > 0, 0)
    x[2:].neg_()
    near((x > 0).reveal(), torch.cat([a[:2], -a[2:]]) > 0, 0)


def test_modules() -> None:
    x = grid(4, 3)
    for module in (nn.ReLU6(), nn.Hardtanh(), nn.LeakyReLU(0.5), nn.Threshold(0.5, 1), nn.RReLU().eval(), nn.PReLU()):
        near(encml.share(module)(encml.share(x.float())).reveal().detach(), module(x.float()).detach(), 2)


def test_random_slopes_in_training() -> None:
    """Each element's slope is one of the interval, as often above its middle as below; backward has the same."""
    a = -torch.ones(4096, dtype=torch.float64)
    a[:64] = 2
    x = encml.share(a).requires_grad_()
    y = F.rrelu(x, 0.25, 0.75, training=True)
    slopes = y.reveal().detach() / a
    assert bool((slopes[:64] == 1).all())
    assert 0.25 - ULP < float(slopes[64:].min()) < 0.27
    assert 0.73 < float(slopes[64:].max()) < 0.75 + ULP
    assert abs(int((slopes[64:] > 0.5).sum()) - 2016) < 7 * 32
    y.sum().backward()
    near(x.grad.reveal(), slopes, 2)


def test_gradients_by_value_can_be_clipped() -> None:
    p = torch.nn.Parameter(encml.share(grid(6)))
    (p * p).sum().backward()
    expected: Tensor = (2 * grid(6)).clamp(-0.5, 0.5)
    torch.nn.utils.clip_grad_value_([p], 0.5, foreach=False)
    near(p.grad.reveal(), expected, 1)
