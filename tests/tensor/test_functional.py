"""torch.func, checkpoints, hooks, averages of models, compilers: what stands around a model, on secrets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from reference import grid, near
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import encml
from encml import Session, SharedTensor, UnsupportedOperation
from encml.errors import SecretError

Weights = dict[str, Tensor]
# PyTorch's own, when forward mode is used first.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_((grid(*p.shape, seed=20 + i) / 4 * 2**16).round() / 2**16)
    return model


PLAIN = network()
"""Its own parameters are never used: they are given to functional_call."""


def weights(share: bool) -> Weights:
    return {name: encml.share(p.detach()) if share else p.detach() for name, p in PLAIN.named_parameters()}


def loss(w: Weights, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(functional_call(PLAIN, w, (x,)), y)


def same(found: Any, expected: Any, ulps: float) -> None:
    flat, expected_flat = (torch.utils._pytree.tree_leaves(v) for v in (found, expected))
    assert len(flat) == len(expected_flat)
    for a, b in zip(flat, expected_flat, strict=True):
        assert isinstance(a, SharedTensor)
        assert not a.requires_grad
        near(a.reveal(), b, ulps)


@pytest.mark.parametrize(
    "transform",
    [
        lambda w, x, y: grad(loss)(w, x, y),
        lambda w, x, y: grad_and_value(loss)(w, x, y),
        lambda w, x, y: grad(loss, argnums=(1, 2))(w, x, y),
        lambda w, x, y: grad(lambda v: (loss(v, x, y), v["0.bias"] * 2), has_aux=True)(w),
        lambda w, x, y: vjp(lambda v: functional_call(PLAIN, v, (x,)), w)[1](y),
        lambda w, x, y: jacrev(lambda a: functional_call(PLAIN, w, (a,)).sum(0))(x),
        lambda w, x, y: jacfwd(lambda a: functional_call(PLAIN, w, (a,)).sum(0))(x[:1]),
        lambda w, x, y: jvp(lambda a: functional_call(PLAIN, w, (a,)), (x,), (x * 2,)),
        lambda w, x, y: jacrev(jacrev(lambda a: (a**3).sum()))(x[0]),
        lambda w, x, y: torch.autograd.functional.jacobian(lambda a: a * a, x[0]),
        lambda w, x, y: torch.autograd.functional.hvp(lambda a: (a**3).sum(), x[0], x[1])[1],
    ],
)
def test_transforms(transform: Callable[..., Any]) -> None:
    """Two layers of products of values below 2: 24 units."""
    x, y = grid(5, 4), grid(5, 3, seed=1)
    expected = transform(weights(False), x, y)
    same(transform(weights(True), encml.share(x), encml.share(y)), expected, 24)


@pytest.mark.parametrize(
    "f",
    [
        F.relu, torch.abs, F.leaky_relu, F.hardtanh, lambda a: a.clamp(-1, 1), torch.sigmoid, torch.tanh, F.gelu,
        lambda a: a.softmax(-1), lambda a: torch.where(a > 0, a, a * 2), lambda a: a.amax(-1),
        lambda a: F.layer_norm(a, (4,)), lambda a: (a * a + 1).sqrt(), lambda a: 1 / (a * a + 1),
    ],
)  # fmt: skip
def test_jacobians_and_tangents(f: Callable[[Tensor], Tensor]) -> None:
    """A whole batch of gradients through what one forward pass kept: bits, exponentials, roots."""
    x, direction = grid(3, 4, seed=3), grid(3, 4, seed=4)
    shared = encml.share(x)
    same(jacrev(f)(shared), jacrev(f)(x), 6)
    same(jvp(f, (shared,), (encml.share(direction),)), jvp(f, (x,), (direction,)), 16)
    same(vmap(grad(lambda row: f(row[None]).sum()))(shared), vmap(grad(lambda row: f(row[None]).sum()))(x), 8)


def test_gradients_of_every_example(session: Session) -> None:
    """Per-sample gradients of a convolutional net with class labels, in the rounds of one."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)).double()
    images, labels = grid(4, 1, 6, 6), torch.tensor([0, 2, 1, 1])
    w = {name: p.detach() for name, p in model.named_parameters()}
    shared = {name: encml.share(p) for name, p in w.items()}

    def one(v: Weights, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, v, (image[None],)), label[None])

    each = vmap(grad(one), (None, 0, 0))
    expected = each(w, images, labels)
    rounds = []
    for count in (1, 4):
        x = encml.share(images[:count])
        with session.ledger.measure() as spent:
            found = each(shared, x, labels[:count])
        rounds.append(spent[0].rounds)
    same(found, expected, 30)
    assert rounds[0] == rounds[1]
    chunked = vmap(grad(one), (None, 0, 0), chunk_size=2)(shared, encml.share(images), labels)
    same(chunked, expected, 30)


@pytest.mark.parametrize(
    "f",
    [
        lambda a, b: vmap(lambda row: (row * row).relu().sum())(a),
        lambda a, b: vmap(torch.mm, (None, 0))(a, b),
        lambda a, b: vmap(lambda row: (row > 0) * row)(a),
        lambda a, b: vmap(vmap(lambda v: v * 2))(a),
        lambda a, b: vmap(lambda row, w: row @ w, (0, None))(a, b[0]),
        lambda a, b: vmap(lambda column: column - column.mean(), 1, 1)(a),
    ],
)
def test_maps_over_a_batch(f: Callable[..., Tensor]) -> None:
    a, b = grid(3, 4), grid(2, 4, 3, seed=1)
    same(f(encml.share(a), encml.share(b)), f(a, b), 6)


def test_forward_mode_by_hand() -> None:
    x, direction = grid(4), grid(4, seed=1)
    results = []
    for a, b in ((x, direction), (encml.share(x), encml.share(direction))):
        with forward_mode.dual_level():
            dual = forward_mode.make_dual(a, b)
            results.append(forward_mode.unpack_dual(dual * dual + dual.relu()).tangent)
    near(results[1].reveal(), results[0], 4)


# Checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_give_the_same_gradients(use_reentrant: bool) -> None:
    """Of a model in segments, nested, with what they close over, accumulated over two batches."""
    x = grid(5, 4)
    plain, shared = network(), encml.share(network())
    for model, a in ((plain, x), (shared, encml.share(x))):
        a = a.requires_grad_()
        for _ in range(2):
            y = checkpoint_sequential(model, 2, a, use_reentrant=use_reentrant)
            y = checkpoint(lambda b: checkpoint(torch.relu, b * 2, use_reentrant=False), y, use_reentrant=use_reentrant)
            y.sum().backward()
        model.inputs_gradient = a.grad
    for p, q in zip(plain.parameters(), shared.parameters(), strict=True):
        near(q.grad.reveal(), p.grad, 60)
    near(shared.inputs_gradient.reveal(), plain.inputs_gradient, 40)


def test_a_checkpoint_computes_again(session: Session) -> None:
    layer = encml.share(nn.Linear(4, 4).double())
    x = encml.share(grid(2, 4)).requires_grad_()
    session.ledger.costs.clear()
    y = checkpoint(lambda a: layer(a).relu(), x, use_reentrant=False)
    assert session.ledger.costs["relu"].calls == 1
    y.sum().backward()
    assert session.ledger.costs["relu"].calls == 2


# Hooks ---------------------------------------------------------------------------------------------------------------


def test_hooks_of_modules_and_parameters() -> None:
    model, x = encml.share(network()), encml.share(grid(5, 4))
    seen: list[tuple[str, Any]] = []
    model[0].register_forward_pre_hook(lambda m, args: seen.append(("before", args[0])))
    model[0].register_forward_hook(lambda m, args, out: seen.append(("after", out)))
    model[2].register_full_backward_hook(lambda m, into, out: seen.append(("backward", out[0])))
    model[2].register_full_backward_hook(lambda m, into, out: (into[0] * 2,))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(("accumulated", p.grad)))
    model(x).sum().backward()
    assert [name for name, _ in seen] == ["before", "after", "backward", "accumulated"]
    assert all(isinstance(value, SharedTensor) for _, value in seen)
    plain = network()
    plain[2].register_full_backward_hook(lambda m, into, out: (into[0] * 2,))
    plain(grid(5, 4)).sum().backward()
    near(model[0].weight.grad.reveal(), plain[0].weight.grad, 30)


def test_optimizer_in_backward() -> None:
    """A step a parameter as soon as its gradient is there."""
    model, x = encml.share(network()), encml.share(grid(5, 4))
    optimizers = {p: torch.optim.SGD([p], lr=0.25) for p in model.parameters()}

    def step(p: Tensor) -> None:
        optimizers[p].step()
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    F.mse_loss(model(x), encml.share(grid(5, 3, seed=1))).backward()
    plain = network()
    F.mse_loss(plain(grid(5, 4)), grid(5, 3, seed=1)).backward()
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert q.grad is None
        near(q.detach().reveal(), p.detach() - 0.25 * p.grad, 20)


# Around models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.75)}])
def test_averages_of_models(average: dict[str, Any]) -> None:
    plain, shared = network(), encml.share(network())
    results = []
    for model in (plain, shared):
        averaged = AveragedModel(model, **average)
        for _ in range(3):
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(0.5)
            averaged.update_parameters(model)
        results.append(list(averaged.module.parameters()))
    for p, q in zip(*results, strict=True):
        near(q.detach().reveal(), p.detach(), 6)


def test_parameters_as_one_vector() -> None:
    model = encml.share(network())
    vector = nn.utils.parameters_to_vector(model.parameters())
    near(vector.detach().reveal(), nn.utils.parameters_to_vector(network().parameters()).detach(), 0)
    nn.utils.vector_to_parameters(vector.detach() * 2, model.parameters())
    near(model[0].weight.detach().reveal(), network()[0].weight.detach() * 2, 0)


def test_batches_of_secrets() -> None:
    """A data set of secrets is read in this process; workers would get the shares, and are refused."""
    data = torch.utils.data.TensorDataset(encml.share(grid(5, 4)), encml.share(torch.arange(5)))
    rows = [(x.reveal(), n.reveal()) for x, n in torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)]
    order = torch.cat([n for _, n in rows])
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
    near(torch.cat([x for x, _ in rows]), grid(5, 4)[order], 0)


# Compilers -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_compiling_is_refused() -> None:
    x = encml.share(grid(3, 4))
    for work in (lambda a: a * 2, encml.share(network())):
        with pytest.raises(UnsupportedOperation, match=r"not traced or compiled"):
            torch.compile(work, backend="eager")(x)
    near((x * 2).reveal(), 2 * grid(3, 4), 0)
    around = torch.compile(lambda a, b: (a + 1, torch.compiler.disable(lambda c: c * 2)(b)), backend="eager")
    one, two = around(torch.ones(2), x)
    near(two.reveal(), 2 * grid(3, 4), 0)
    assert torch.equal(one, torch.full((2,), 2.0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "trace",
    [
        lambda model, x: torch.export.export(model, (x,)),
        lambda model, x: make_fx(model)(x),
        lambda model, x: torch.func.linearize(model, x),
    ],
)
def test_tracing_is_refused(trace: Callable[..., Any]) -> None:
    """A graph would hold masks as constants and use them twice."""
    with pytest.raises((SecretError, UnsupportedOperation, RuntimeError)):
        trace(encml.share(network()), encml.share(grid(3, 4)))
