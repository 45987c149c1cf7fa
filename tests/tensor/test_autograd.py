"""Stock autograd on secrets: accumulation, reuse, hooks, torch.func, second derivatives, and what stops it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import grid, matches, near
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import encml
from encml import Session, SharedTensor
from encml.tensor.shared import secret


def leaf(*shape: int, seed: int = 0) -> SharedTensor:
    return encml.share(grid(*shape, seed=seed)).requires_grad_()


def test_gradients_accumulate_until_zeroed() -> None:
    x, plain = leaf(3), grid(3).requires_grad_()
    for _ in range(3):
        (x * 2).sum().backward()
        (plain * 2).sum().backward()
    near(x.grad.reveal(), plain.grad, 0)
    x.grad = None
    (x * x).sum().backward()
    near(x.grad.reveal(), 2 * plain, 1)
    x.grad.zero_()
    near(x.grad.reveal(), torch.zeros(3), 0)


def test_a_tensor_used_twice() -> None:
    matches(lambda x: x * x + x + x.t() @ x, grid(3, 3), ulps=2, grad_ulps=4)
    matches(lambda x: torch.cat([x, x * 2, x[:1]]), grid(3), ulps=0, grad_ulps=0)
    matches(lambda x: (x.relu() * x).sum() + x.relu().sum(), grid(3), ulps=2, grad_ulps=3)


def test_plain_gradients_are_taken() -> None:
    """Given to backward, they become secrets; a plain leaf's gradient by a secret is secret."""
    x, p = leaf(3), grid(3, seed=1).requires_grad_()
    upstream = grid(3, seed=2)
    (x * p).backward(upstream)
    assert isinstance(p.grad, SharedTensor)
    near(p.grad.reveal(), upstream * x.reveal(), 1)
    near(x.grad.reveal(), upstream * p, 1)
    (x * p.detach()).sum().backward()
    near(x.grad.reveal(), upstream * p + p, 2)
    w = leaf(2, 1, 2, 2)
    F.conv2d(torch.ones(1, 1, 3, 3, dtype=torch.float64), w).backward(torch.ones(1, 2, 2, 2, dtype=torch.float64))
    near(w.grad.reveal(), torch.full((2, 1, 2, 2), 4.0), 0)


def test_a_secret_gradient_does_not_enter_a_plain_optimizer() -> None:
    p = grid(3).requires_grad_()
    (p * encml.share(grid(3))).sum().backward()
    with pytest.raises(TypeError, match="plain tensor"):
        torch.optim.SGD([p], lr=0.1).step()
    near(p, grid(3), 0)


def test_reveal_is_differentiable() -> None:
    x = leaf(3)
    (x * 2).reveal().pow(2).sum().backward()
    near(x.grad.reveal(), 8 * grid(3), 0)
    assert not x.detach().reveal().requires_grad
    with torch.no_grad():
        assert not x.reveal().requires_grad
    (gradient,) = torch.autograd.grad((x.reveal() ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|differentiate twice|does not require grad"):
        gradient.sum().backward()


def test_retain_graph() -> None:
    x = leaf(3)
    y = (x * x).relu().sum()
    y.backward(retain_graph=True)
    y.backward()
    near(x.grad.reveal(), 4 * grid(3), 4)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_second_derivatives() -> None:
    plain, x = grid(4).requires_grad_(), leaf(4)
    weights = grid(4, seed=3)
    results = []
    for a, w in ((plain, weights), (x, encml.share(weights))):
        y = ((a * a).relu() * a * w).sum()
        (first,) = torch.autograd.grad(y, a, create_graph=True)
        (second,) = torch.autograd.grad((first * first).sum(), a)
        results.append((first, second))
    near(results[1][0].reveal(), results[0][0], 60)
    near(results[1][1].reveal(), results[0][1], 6000)


def test_second_derivative_of_relu_is_not_lost() -> None:
    """d/dg of relu's backward is the mask."""
    x, g = leaf(5), encml.share(grid(5, seed=1)).requires_grad_()
    (first,) = torch.autograd.grad(x.relu(), x, g, create_graph=True)
    first.sum().backward()
    near(g.grad.reveal(), (grid(5) > 0).double(), 0)


def test_relu_compares_once_wherever_it_is_called_from(session: Session) -> None:
    """Also inside torch.func, checkpoints and in place: the bits stay with the input and the result."""
    x = encml.share(grid(3, 4))

    for f, name, rounds in (
        (lambda: torch.func.grad(lambda a: a.relu().sum())(x), "relu", 10),
        (lambda: (leaf(3) * 2).relu_().sum().backward(), "relu_", 10),
        (lambda: checkpoint(torch.relu, leaf(3), use_reentrant=False).sum().backward(), "relu", 12),
    ):
        session.ledger.costs.clear()
        f()
        assert session.ledger.costs[name].rounds == rounds
        assert session.ledger.costs["threshold_backward"].rounds == 2


def test_relu_bits_go_when_its_result_is_written_over() -> None:
    x = leaf(4)
    y = x.relu()
    assert secret(y).fact("above 0.0") is not None
    with torch.no_grad():
        y.add_(1)
        y[0] = 5
    assert secret(y).fact("above 0.0") is None
    assert secret(x.relu()[1:]).fact("above 0.0") is None
    y = (x * 2).relu_()
    assert secret(y).fact("above 0.0") is not None
    y.sum().backward()
    near(x.grad.reveal(), 2.0 * (grid(4) > 0), 0)


def test_functional_gradients() -> None:
    x, w = encml.share(grid(3, 4)), encml.share(grid(4, 2, seed=1))
    plain, weights = grid(3, 4), grid(4, 2, seed=1)

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b).relu().sum()

    for argnums in (0, 1):
        found = torch.func.grad(loss, argnums=argnums)(x, w)
        near(found.reveal(), torch.func.grad(loss, argnums=argnums)(plain, weights), 1)
    _, pull = torch.func.vjp(lambda a: a @ w, x)
    (found,) = pull(encml.share(grid(3, 2, seed=2)))
    near(found.reveal(), grid(3, 2, seed=2) @ weights.t(), 1)
    model = encml.share(nn.Linear(4, 2).double())
    near(
        torch.func.functional_call(model, {"weight": x[:2], "bias": w[0]}, (x,)).reveal(),
        plain @ plain[:2].t() + weights[0],
        1,
    )


def test_gradients_per_example() -> None:
    x, w = encml.share(grid(5, 4)), encml.share(grid(4, seed=1))

    def loss(weights: Tensor, example: Tensor) -> Tensor:
        return ((weights * example) * 2).sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, x)
    near(found.reveal(), 2 * grid(5, 4), 1)


def test_checkpointing() -> None:
    layer = encml.share(nn.Linear(4, 4).double())
    x = leaf(3, 4)
    direct = layer(x).relu().sum()
    direct.backward()
    expected = x.grad.reveal()
    x.grad = None
    checkpoint(lambda a: layer(a).relu(), x, use_reentrant=False).sum().backward()
    near(x.grad.reveal(), expected, 8)


def test_hooks_see_secrets() -> None:
    x = leaf(3)
    seen: list[Any] = []
    x.register_hook(seen.append)
    y = x * 2
    y.register_hook(lambda g: g * 3)
    y.sum().backward()
    assert isinstance(seen[0], SharedTensor)
    near(x.grad.reveal(), torch.full((3,), 6.0), 0)


def test_no_grad_and_detach() -> None:
    x = leaf(3)
    with torch.no_grad():
        assert not (x * 2).requires_grad
        assert not x.relu().requires_grad
    y = (x * x).detach()
    assert y.is_leaf
    assert not y.requires_grad
    assert secret(y).pending
    (y * x).sum().backward()
    near(x.grad.reveal(), grid(3) ** 2, 1)
    assert (x > 0).requires_grad is False
    with pytest.raises(RuntimeError):
        (x > 0).requires_grad_()


def test_inference_mode() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(18, 4), nn.ReLU()
    ).double()
    shared, x = encml.share(model).eval(), grid(2, 1, 8, 8)
    with torch.inference_mode():
        found = shared(encml.share(x)).reveal()
    near(found, model.eval()(x), 400)


def test_anomaly_mode() -> None:
    x = leaf(3)
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        (x * x).sum().backward()
    near(x.grad.reveal(), 2 * grid(3), 1)


def test_backward_of_several_sessions_at_once() -> None:
    """The engine travels with the tensor, not with the thread or the block."""
    with Session(seed=5) as other:
        y = leaf(3)
        z = (y * y).sum()
    x = leaf(3)
    (x * x).sum().backward()
    z.backward()
    with pytest.raises(ConnectionError, match="closed"):
        y.grad.reveal()
    assert other.ledger is not x.session.ledger
    near(x.grad.reveal(), 2 * grid(3), 1)
