"""Rescale late: what is done to a product before it is truncated gives what it would give after, at less cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import ULP, grid, matches, near
from torch import Tensor

import encml
from encml import Session, SharedTensor
from encml.mpc.session import current_session
from encml.tensor.secret import SLACK_BITS, Secret
from encml.tensor.shared import secret


def rounds(session: Session, f: Callable[[], Any]) -> int:
    before = session.ledger.total.rounds
    f()
    return session.ledger.total.rounds - before


def operands() -> tuple[Tensor, Tensor]:
    return grid(3, 4, seed=1), grid(4, 5, seed=2)


LAWS: list[Callable[[Tensor], Tensor]] = [
    lambda y: y,
    lambda y: y + y,
    lambda y: y - y,
    lambda y: y.sum(),
    lambda y: y + 1.5,
    lambda y: y + y.sum(0),
    lambda y: y.t() + 1,
    lambda y: y[1:] - y[:-1],
    lambda y: -y * 3,
    lambda y: y.view(-1).flip(0),
    lambda y: y.detach() + y.t().t(),
    lambda y: torch.cat([y, y]),
    lambda y: y[:, :4].sum(0).mean(),
    lambda y: y * 0.25,
    lambda y: y / 2 + y / 2,
    lambda y: y * torch.tensor([1.0, 0.0, 2.0, 1.0, -1.0]),
]


@pytest.mark.parametrize("law", LAWS)
def test_linear_operations_on_a_pending_product(law: Callable[[Tensor], Tensor]) -> None:
    """No communication until the end, and then at most three more units: 20 products were summed up."""
    a, b = operands()
    session = current_session()
    x, w = encml.share(a), encml.share(b)
    before = session.ledger.total.rounds
    y = law(x @ w)
    assert session.ledger.total.rounds == before
    assert secret(y).pending
    near(y.reveal(), law(a @ b), 4)
    matches(lambda p, q: law(p @ q), a, b, ulps=4, grad_ulps=16)


REUSES: list[Callable[[Tensor], Tensor]] = [
    lambda y: y * y,
    lambda y: y @ y.t(),
    lambda y: (y * y).sum() + y.sum(),
    lambda y: y.relu() + y,
    lambda y: (y > 0) * y,
    lambda y: y * 0.1 + y,
    lambda y: F.avg_pool2d(y[None, None], 2, padding=1).relu() * 4,
]


@pytest.mark.parametrize("reuse", REUSES)
def test_a_pending_product_used_again(reuse: Callable[[Tensor], Tensor]) -> None:
    """|y| <= 16, so rounding it is amplified up to 2 * 16 * 5 times in y @ y.t()."""
    a, b = operands()
    matches(lambda p, q: reuse(p @ q), a, b, ulps=165, grad_ulps=2500)


def test_settling_is_paid_once(session: Session) -> None:
    a, b = operands()
    y = encml.share(a) @ encml.share(b)
    view, alias = y.t(), y.detach()
    assert rounds(session, lambda: secret(view).payload) == 3
    assert rounds(session, lambda: (secret(y).payload, secret(alias).payload, y > 0)) == 10
    assert torch.equal(view.reveal(), y.reveal().t())


def test_rounds_of_pools_and_biases(session: Session) -> None:
    """A convolution, its bias, a pooling and a ReLU: one comparison, and one truncation in the same rounds."""
    x, weight, bias = encml.share(grid(2, 1, 8, 8)), encml.share(grid(3, 1, 3, 3)), encml.share(grid(3))
    assert rounds(session, lambda: F.relu(F.avg_pool2d(F.conv2d(x, weight, bias), 2))) == 10
    assert rounds(session, lambda: F.avg_pool2d(F.conv2d(x, weight, bias), 2).flatten(1)) == 0


def test_fewer_elements_are_truncated_after_a_pooling(session: Session) -> None:
    x, weight = encml.share(grid(2, 1, 8, 8)), encml.share(grid(3, 1, 1, 1))
    before = session.ledger.total
    secret(F.avg_pool2d(F.conv2d(x, weight), 2)).settle()
    n, shift = 2 * 3 * 4 * 4, 16 + 2
    wide = 4 if shift > 16 else 2
    assert (session.ledger.total - before).bytes == n * (8 + wide + 16) + 2 * -(-n // 8)


def test_fraction_bits_stay_bounded() -> None:
    """However long linear operations go on, and whatever they meet."""
    session = current_session()
    limit = 2 * session.fraction_bits + SLACK_BITS
    x = encml.share(grid(8, low=-1, high=1))
    y, plain = x * x, grid(8, low=-1, high=1) ** 2
    for step in range(60):
        factor = [0.5, 0.3, 1.5, 0.125, 1.9][step % 5]
        y, plain = y * factor, plain * factor
        y, plain = y + x, plain + grid(8, low=-1, high=1)
        assert secret(y).fraction_bits <= limit
    near(y.reveal(), plain, 200)


def test_large_values_meet_small_fractions() -> None:
    """A value near the range's end plus something with many fraction bits must not leave the ring."""
    large = torch.tensor([2.0**29, 1 - 2.0**30], dtype=torch.float64)
    small = torch.tensor([0.5, -0.75], dtype=torch.float64)
    x, y = encml.share(large), encml.share(small)
    for f, ulps in (
        (lambda a, b: a + b * b, 1),
        (lambda a, b: a + (b * b) * 0.25, 1),
        (lambda a, b: a + b * 1e-3, 1),
        (lambda a, b: b * 1e-3 - a, 1),
        (lambda a, b: a + b * 0.1 * 0.1, 3),
        (lambda a, b: (a * 0.75 + b) * 0.5, 3),
        (lambda a, b: torch.stack([a, b * 0.001]), 1),
        (lambda a, b: a + 0.5 * (b - a), 3),
        (lambda a, b: (a < b * 0.001).double(), 0),
        (lambda a, b: (a * 0.5).relu() + b, 2),
        (lambda a, b: a * 0.25 * b, 4),
    ):
        near(f(x, y).reveal().double(), f(large.double(), small.double()), ulps + float(large.abs().max()) * 2.0**-15)


@pytest.mark.parametrize("fraction_bits", [4, 8, 12, 20, 24])
def test_other_fraction_bits(fraction_bits: int) -> None:
    ulp = 2.0**-fraction_bits
    a, b = (grid(4, 4, seed=i).mul(2**4).round().div(2**4) for i in (1, 2))
    with Session(fraction_bits=fraction_bits, seed=4):
        x, y = encml.share(a).requires_grad_(), encml.share(b)
        assert torch.all((((x @ y) * 0.5 + y).reveal() - ((a @ b) * 0.5 + b)).abs() < ulp)
        assert torch.all(((x / 3).reveal() - a / 3).abs() < 3 * ulp)
        assert torch.all(((x * 1e-3).reveal() - a * 1e-3).abs() < 3 * ulp)
        assert torch.equal(((x * y).relu() > 0).reveal(), ((a * b).relu() > 0))
        F.avg_pool2d((x @ y).relu()[None, None], 2).sum().backward()
        assert torch.all((x.grad.reveal() - ((a @ b > 0).double() * 0.25) @ b.t()).abs() < 4 * ulp)


def test_repr_of_a_secret_tells_its_state_only() -> None:
    x = encml.share(grid(2))
    y = x * x
    assert repr(secret(x)) == "Secret(shape=(2,), fraction_bits=16, replicated)"
    assert repr(secret(y)) == "Secret(shape=(2,), fraction_bits=32, pending)"
    with pytest.raises(TypeError):
        Secret(x.session, 16)


def test_range_edges() -> None:
    """The largest shareable values, through everything that keeps them."""
    edge = torch.tensor([2.0**30 - ULP, ULP - 2.0**30], dtype=torch.float64)
    x = encml.share(edge)
    one = torch.ones(2, dtype=torch.float64)
    for f in (
        lambda a: a,
        lambda a: a * encml.share(one),
        lambda a: a * one,
        lambda a: encml.share(one) * a,
        lambda a: (a.view(1, 2) @ encml.share(torch.eye(2))).view(2),
        lambda a: a.relu() - (-a).relu(),
        lambda a: a - 0.5 + 0.5,
        lambda a: (a * encml.share(one) + a * 0).detach(),
        lambda a: a[:, None].expand(2, 4).mean(1),
        lambda a: F.avg_pool2d(a.view(2, 1, 1).expand(2, 1, 1), 1).flatten(),
        lambda a: (a > 0) * a + (a < 0) * a,
    ):
        found = f(x)
        assert isinstance(found, SharedTensor)
        near(found.reveal(), edge, 1 + ULP * 2.0**30)
