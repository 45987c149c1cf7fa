"""In-place operations, through views and aliases, under autograd, and where they are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import grid, near
from torch import Tensor

import encml
from encml import SharedTensor, UnsupportedOperation
from encml.errors import InvalidTensor, SecretError

Change = Callable[[Tensor, Callable[[Tensor], Tensor]], Any]
"""Changes a tensor in place; the second argument makes operands secret, or leaves them plain."""

CHANGES: list[Change] = [
    lambda a, s: a.add_(1),
    lambda a, s: a.add_(s(grid(3, 4, seed=7))),
    lambda a, s: a.sub_(s(grid(4, seed=7)), alpha=2),
    lambda a, s: a.mul_(2),
    lambda a, s: a.mul_(s(grid(3, 1, seed=7))),
    lambda a, s: a.div_(4),
    lambda a, s: a.neg_(),
    lambda a, s: a.pow_(2),
    lambda a, s: a.relu_(),
    lambda a, s: a.zero_(),
    lambda a, s: a.fill_(1.5),
    lambda a, s: a.fill_(s(torch.tensor(0.5, dtype=torch.float64))),
    lambda a, s: a.copy_(s(grid(4, seed=7))),
    lambda a, s: a.copy_(grid(3, 4, seed=7)),
    lambda a, s: a[0].add_(1),
    lambda a, s: a[0, 1].add_(s(grid(seed=7))),
    lambda a, s: a[:, 1].copy_(s(grid(3, seed=7))),
    lambda a, s: a[:, ::2].mul_(-3),
    lambda a, s: a.t().mul_(2),
    lambda a, s: a.t()[1:3].sub_(s(grid(2, 3, seed=7))),
    lambda a, s: a.view(-1)[5:].zero_(),
    lambda a, s: a.view(2, 6)[1].view(3, 2).t().add_(s(grid(3, seed=7))),
    lambda a, s: a.diagonal().fill_(7),
    lambda a, s: a.unbind(1)[2].neg_(),
    lambda a, s: a.split(2)[1].mul_(0.5),
    lambda a, s: a.detach().add_(1),
    lambda a, s: a.data.add_(1),
    lambda a, s: a.unsqueeze(0).squeeze(0).permute(1, 0).relu_(),
    lambda a, s: a.__setitem__(0, 5),
    lambda a, s: a.__setitem__(0, s(grid(4, seed=7))),
    lambda a, s: a.__setitem__((slice(None), 1), s(grid(3, seed=7))),
    lambda a, s: a.__setitem__((slice(None), 1), 0.25),
    lambda a, s: a.__setitem__((slice(None, None, 2), slice(1, None)), s(grid(3, seed=7))),
    lambda a, s: a.__setitem__((Ellipsis, -1), grid(3, seed=7)),
    lambda a, s: a.__setitem__(torch.tensor([2, 0]), s(grid(2, 4, seed=7))),
    lambda a, s: a.__setitem__((slice(None), torch.tensor([3, 1])), s(grid(3, 2, seed=7))),
    lambda a, s: a.__setitem__(grid(3, 4) > 0, 0.0),
    lambda a, s: a.__setitem__(grid(3, 4) > 0, 1.25),
    lambda a, s: a.__setitem__(torch.tensor([True, False, True]), s(grid(4, seed=7))),
    lambda a, s: a.t().__setitem__(0, s(grid(3, seed=7))),
    lambda a, s: a.index_put_((torch.tensor([0, 0]),), s(grid(2, 4, seed=7)), accumulate=True),
    lambda a, s: a.index_add_(1, torch.tensor([3, 3]), s(grid(3, 2, seed=7))),
    lambda a, s: a.scatter_add_(0, torch.tensor([[0, 2, 1, 1]]), s(grid(1, 4, seed=7))),
    lambda a, s: a.add_(a),
    lambda a, s: a.mul_(a),
    lambda a, s: a[0].add_(a[1]),
    lambda a, s: a[:, :2].add_(a[:, 2:]),
    lambda a, s: a.copy_(a.clone().flip(0)),
    lambda a, s: a.squeeze_(0).unsqueeze_(1).squeeze_(),
]
TRANSPOSING: list[Change] = [lambda a, s: a.t_().mul_(2), lambda a, s: a.transpose_(0, 1)[0].add_(1)]
CHANGES += TRANSPOSING


def whole(x: Tensor) -> Tensor:
    return x


def ready(x: Tensor) -> SharedTensor:
    return encml.share(x)


def pending(x: Tensor) -> SharedTensor:
    """The same values, as a product that is still to be truncated."""
    return encml.share(x) * encml.share(torch.ones_like(x))


@pytest.mark.parametrize("make", [ready, pending])
@pytest.mark.parametrize("operands", [whole, encml.share], ids=["plain", "secret"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_reach_the_payload(change: Change, operands: Callable[[Tensor], Tensor], make: Any) -> None:
    """The tensor, a view and an alias of it that were taken before all show what the plain ones show."""
    plain, secret = grid(3, 4), make(grid(3, 4))
    plain_view, view = plain.t()[1:], secret.t()[1:]
    alias, plain_alias = secret.detach(), plain.detach()
    change(plain, whole)
    change(secret, operands)
    assert secret.shape == plain.shape
    assert secret.stride() == plain.stride()
    for found, expected in [(secret, plain), (view, plain_view), (alias, plain_alias)]:
        near(found.reveal(), expected, 5)


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen_by_autograd(change: Change) -> None:
    """Of a result of a leaf; where PyTorch refuses the change, so must a SharedTensor, in the same way."""
    x, upstream = grid(3, 4), grid(3, 4, seed=5)
    plain_leaf, leaf = x.clone().requires_grad_(), encml.share(x).requires_grad_()
    plain, secret = plain_leaf * 2, leaf * 2
    upstream = upstream if change not in TRANSPOSING else upstream.t()
    refused = refusal(lambda: (change(plain, whole), plain.backward(upstream)))
    found = refusal(lambda: (change(secret, encml.share), secret.backward(encml.share(upstream))))
    assert found[:60] == refused[:60]
    if refused:
        return
    assert secret.requires_grad == plain.requires_grad
    near(secret.reveal(), plain, 9)
    near(leaf.grad.reveal(), plain_leaf.grad, 12)


def refusal(work: Callable[[], Any]) -> str:
    """The message with which autograd refuses, or nothing."""
    try:
        work()
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_change_of_what_backward_needs_is_found() -> None:
    x, w = encml.share(grid(3)).requires_grad_(), encml.share(grid(3))
    y = x * w
    w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    w = encml.share(grid(3, 3))
    y = x @ w
    w[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    leaf = encml.share(grid(3)).requires_grad_()
    with pytest.raises(RuntimeError, match="leaf"):
        leaf.add_(1)
    assert leaf._version == 0
    with torch.no_grad():
        leaf.add_(1)
    assert leaf._version == 1


def test_copies_are_copies() -> None:
    x = grid(3)
    for copy in (lambda a: a.clone(), lambda a: a.double() * 1, lambda a: a + 0, lambda a: a.contiguous().clone()):
        a = encml.share(x)
        b = copy(a)
        b.add_(1)
        near(a.reveal(), x, 0)
        near(b.reveal(), x + 1, 0)
    a = encml.share(x[0])
    for alias in (
        a.sum(),
        a.sum(0),
        a.relu(),
        a.mean(),
        torch.stack([a])[0],
        a.expand(1)[0].clone(),
        a.flip(()),
        a.tile(1),
    ):
        alias.add_(1)
        near(a.reveal(), x[0], 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda p, s: p.add_(s),
        lambda p, s: p.add_(other=s),
        lambda p, s: p.sub_(s),
        lambda p, s: p.mul_(s),
        lambda p, s: p.copy_(s),
        lambda p, s: p.fill_(s[0]),
        lambda p, s: p[0].copy_(s[0]),
        lambda p, s: p.__setitem__(0, s[0]),
        lambda p, s: p.__setitem__(torch.tensor([0, 1]), s[:2]),
        lambda p, s: p.__setitem__(slice(1, None), s[1:]),
        lambda p, s: p.index_put_((torch.tensor([0]),), s[:1]),
        lambda p, s: p.index_add_(0, torch.tensor([0]), s[:1]),
        lambda p, s: torch.add(s, s, out=p),
        lambda p, s: torch.mul(p, s, out=p),
        lambda p, s: torch.matmul(s, s, out=p.sum()),
        lambda p, s: torch.sum(s, 0, out=p.sum()),
        lambda p, s: torch.cat([s], out=p),
        lambda p, s: p.set_(s),
    ],
)
def test_a_plain_tensor_takes_no_secret(change: Callable[[Tensor, Tensor], Any]) -> None:
    plain = torch.zeros(3, dtype=torch.float64)
    with pytest.raises((SecretError, RuntimeError)) as info:
        change(plain, encml.share(grid(3)))
    assert torch.equal(plain, torch.zeros(3, dtype=torch.float64))
    assert "plain tensor" in str(info.value)


def test_shapes_that_do_not_fit() -> None:
    a, b = encml.share(grid(3)), encml.share(grid(2, 3))
    for wrong in (lambda: a.add_(b), lambda: a.copy_(b), lambda: a.mul_(grid(2, 3))):
        with pytest.raises(InvalidTensor, match="does not fit"):
            wrong()
    with pytest.raises(RuntimeError, match="single memory location"):
        a[:1].expand(3).add_(1)
    for wrong in (lambda: b.__setitem__(0, grid(2)), lambda: b[:, :2].copy_(b)):
        with pytest.raises((RuntimeError, InvalidTensor)):
            wrong()


def test_other_in_place_operations_are_named() -> None:
    a = encml.share(grid(3))
    for wrong, name in (
        (lambda: a.uniform_(), "uniform_"),
        (lambda: a.normal_(), "normal_"),
        (lambda: a.resize_(2), "resize_"),
    ):
        with pytest.raises(UnsupportedOperation, match=name):
            wrong()
    near(a.reveal(), grid(3), 0)


def test_data_takes_over_the_secret() -> None:
    p, q = encml.share(grid(3, 2, seed=1)), encml.share(grid(3, 2, seed=2))
    p.data = q
    near(p.reveal(), grid(3, 2, seed=2), 0)
    q.add_(1)
    near(p.reveal(), grid(3, 2, seed=2) + 1, 0)
    p.data = encml.share(grid(2, 3)).t()
    near(p.reveal(), grid(2, 3).t(), 0)
    near(p.reshape(-1).reveal(), grid(2, 3).t().reshape(-1), 0)
    assert p.stride() == (1, 3)
    parameter = torch.nn.Parameter(encml.share(grid(3)))
    old = parameter.detach()
    parameter.data = parameter.data * 2
    near(parameter.reveal(), grid(3) * 2, 0)
    near(old.reveal(), grid(3), 0)
    assert parameter.requires_grad
    with pytest.raises(SecretError):
        parameter.data = grid(3)
    parameter.data = encml.share(grid(2, 2).float())
    assert (parameter.shape, parameter.dtype) == ((2, 2), torch.float32)
    (parameter * 2).sum().backward()
    near(parameter.grad.reveal(), torch.full((2, 2), 2.0), 0)


def test_modules_change_their_dtype_and_layout() -> None:
    module = encml.share(torch.nn.Conv2d(2, 3, 3).double())
    before = module.weight.reveal()
    assert module.float().weight.dtype == torch.float32
    assert module.double().to("cpu").weight.dtype == torch.float64
    assert module.to(memory_format=torch.channels_last).weight.stride() == (18, 1, 6, 2)
    near(module.weight.reveal(), before, 0)
    assert isinstance(module.weight, torch.nn.Parameter)
    assert module.weight.requires_grad
    with pytest.raises(UnsupportedOperation, match="float16"):
        module.half()
