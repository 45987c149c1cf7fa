"""Modules, their state, and the seed network on secrets, against float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from reference import ULP, grid, near
from torch import Tensor, nn

import encml
from encml import Session, SharedTensor, UnsupportedOperation
from encml.errors import SecretError
from encml.mpc.costs import COSTS
from encml.tensor.handlers.signs import AT_ONCE


def network(seed: int = 0) -> nn.Sequential:
    """A small one of the seed network's kind, in float64 and on the grid, so that sharing it is exact."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p / ULP).round() * ULP)
    return model


def seed_network() -> nn.Sequential:
    """The network of the main job."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


# Modules -------------------------------------------------------------------------------------------------------------


def test_sharing_a_module_copies_it() -> None:
    plain = network()
    shared = encml.share(plain)
    assert type(shared) is nn.Sequential
    for (name, p), (other, q) in zip(plain.named_parameters(), shared.named_parameters(), strict=True):
        assert name == other
        assert isinstance(q, SharedTensor)
        assert isinstance(q, nn.Parameter)
        assert q.requires_grad
        assert q.is_leaf
        assert type(p) is nn.Parameter
        near(q.reveal(), p, 0)
    plain[1].foo = 3
    assert not hasattr(shared[1], "foo")


def test_frozen_parameters_and_buffers() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(grid(3), requires_grad=False)
            self.missing = nn.Parameter(grid(2))
            self.register_parameter("nothing", None)
            self.register_buffer("mean", grid(3, seed=1))
            self.register_buffer("count", torch.tensor(7))
            self.register_buffer("passing", grid(2), persistent=False)
            self.register_buffer("nil", None)

    shared = encml.share(Part())
    assert not shared.weight.requires_grad
    assert isinstance(shared.mean, SharedTensor)
    assert isinstance(shared.passing, SharedTensor)
    assert "passing" not in shared.state_dict()
    assert shared.count.item() == 7
    assert shared.nil is None
    assert shared.nothing is None


def test_tied_parameters_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.two.weight = self.one.weight
            self.register_buffer("a", grid(2))
            self.register_buffer("b", self.a)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    plain = Tied().double()
    shared = encml.share(plain)
    assert shared.one.weight is shared.two.weight
    assert shared.a is shared.b
    assert len(list(shared.parameters())) == 1
    again = copy.deepcopy(shared)
    assert again.one.weight is again.two.weight
    assert again.one.weight is not shared.one.weight
    x = grid(2, 3)
    plain(x).sum().backward()
    shared(encml.share(x)).sum().backward()
    near(shared.one.weight.grad.reveal(), plain.one.weight.grad, 12)


@pytest.mark.parametrize("make", [lambda: encml.share(grid(3)), lambda: encml.share(grid(3)) * encml.share(grid(3))])
def test_deep_copies(make: Callable[[], SharedTensor]) -> None:
    x = make()
    x.grad = encml.share(grid(3, seed=4))
    both = copy.deepcopy([x, x])
    assert both[0] is both[1]
    y = both[0]
    value = x.reveal()
    y.add_(1)
    near(x.reveal(), value, 2)
    near(y.reveal(), value + 1, 2)
    near(y.grad.reveal(), grid(3, seed=4), 0)
    leaf = encml.share(grid(3)).requires_grad_()
    assert copy.deepcopy(leaf).requires_grad
    with pytest.raises(UnsupportedOperation, match="leaf"):
        copy.deepcopy(leaf * 2)


def test_deep_copies_of_models() -> None:
    shared = encml.share(network())
    again = copy.deepcopy(shared)
    with torch.no_grad():
        for p in again.parameters():
            assert isinstance(p, nn.Parameter)
            p.zero_()
    for p, q in zip(shared.parameters(), network().parameters(), strict=True):
        near(p.reveal(), q, 0)


@pytest.mark.parametrize("assign", [False, True])
def test_state_goes_from_secret_to_secret_and_from_plain_to_secret(assign: bool) -> None:
    source, target = encml.share(network(1)), encml.share(network(2))
    assert not target.load_state_dict(source.state_dict(), assign=assign).missing_keys
    for p, q in zip(target.parameters(), network(1).parameters(), strict=True):
        assert isinstance(p, SharedTensor)
        assert isinstance(p, nn.Parameter)
        near(p.reveal(), q, 0)
    if not assign:
        target.load_state_dict(network(3).state_dict())
        for p, q in zip(target.parameters(), network(3).parameters(), strict=True):
            assert isinstance(p, SharedTensor)
            near(p.reveal(), q, 0)
        with torch.no_grad():
            next(target.parameters()).zero_()
        near(next(source.parameters()).reveal(), next(network(1).parameters()), 0)


def test_secret_state_does_not_load_into_a_plain_model() -> None:
    plain, before = network(2), network(2)
    with pytest.raises(RuntimeError, match="plain tensor"):
        plain.load_state_dict(encml.share(network(1)).state_dict())
    for p, q in zip(plain.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q)


def test_optimizer_state_is_secret_and_copies() -> None:
    model = encml.share(nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(encml.share(torch.ones(1, 3))).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()["state"]
    assert all(isinstance(entry["momentum_buffer"], SharedTensor) for entry in state.values())
    again = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    again.load_state_dict(optimizer.state_dict())
    again.step()


def test_a_parameter_by_hand() -> None:
    parameter = nn.Parameter(encml.share(grid(3)))
    assert isinstance(parameter, SharedTensor)
    assert parameter.requires_grad
    holder = nn.Module()
    holder.weight = parameter
    assert [name for name, _ in holder.named_parameters()] == ["weight"]
    model = encml.share(nn.Linear(2, 2))
    assert model.to(torch.float32) is model
    assert model.train().eval().requires_grad_(False) is model
    with pytest.raises(UnsupportedOperation):
        model.half()


def test_modules_that_work_without_secrets_of_their_own() -> None:
    x = grid(2, 4)
    for layer in (
        nn.Identity(),
        nn.Flatten(),
        nn.Dropout(0.5).eval(),
        nn.Dropout(0.0),
        nn.ReLU(),
        nn.Unflatten(1, (2, 2)),
    ):
        near(layer(encml.share(x)).reveal(), layer(x), 0)
    near(F.dropout(encml.share(x), 0.5, training=False).reveal(), x, 0)
    near(F.dropout(encml.share(x), p=0).reveal(), x, 0)
    plain = nn.Linear(4, 3).double()
    near(plain(encml.share(x)).reveal(), plain(x), 8)
    near(encml.share(plain)(x).reveal(), plain(x), 8)


def test_sharing_twice_is_refused() -> None:
    with pytest.raises(encml.errors.InvalidTensor, match="shared already"):
        encml.share(encml.share(network()))
    with pytest.raises(SecretError, match="reveal"):
        encml.reveal(torch.zeros(2))  # type: ignore[arg-type]


# The seed network ----------------------------------------------------------------------------------------------------


def relu(n: int, declared: int | None) -> tuple[int, int]:
    """Rounds, and bytes in all, of rounding a product and its ReLU: few are compared while they are rounded."""
    bits = 48 if declared is None else declared
    compared, rounded, select = ("negative", 3, 2) if n > AT_ONCE else ("negative_rows", 0, 2)
    if n <= AT_ONCE:
        bits = min(64, bits + 18)
    sent = COSTS["product_truncate"].sent(n, 18) + COSTS[compared].sent(n, bits) + COSTS["select"].sent(n, 0)
    return rounded + COSTS[compared].rounds(bits) + select, sent


@pytest.mark.parametrize("declared", [None, 32])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_seed_network_costs_what_it_should(batch: int, declared: int | None) -> None:
    """Three times a truncation and a ReLU, and a last truncation. It agrees with plaintext."""
    plain = seed_network().double()
    with Session(seed=3, comparison_bits=declared) as session:
        model, x = encml.share(plain).eval(), grid(batch, 1, 28, 28, low=0, high=1)
        shared = encml.share(x)
        before = session.ledger.total
        with torch.no_grad():
            logits = model(shared)
            encml.tensor.shared.secret(logits).settle()
        spent = session.ledger.total - before
        layers = [relu(batch * n, declared) for n in (16 * 13 * 13, 32 * 5 * 5, 64)]
        assert spent.rounds == sum(rounds for rounds, _ in layers) + 3
        assert spent.bytes == sum(sent for _, sent in layers) + COSTS["product_truncate"].sent(batch * 10, 16)
        near(logits.reveal(), plain(x), 60)
        assert torch.equal(logits.reveal().argmax(1), plain(x).argmax(1))


def test_a_training_step_of_the_seed_network(session: Session) -> None:
    """Forward, backward and update within the design's 120 rounds; gradients agree with float64."""
    plain = seed_network().double()
    model, x, y = encml.share(plain), grid(4, 1, 28, 28, low=0, high=1), torch.eye(10, dtype=torch.float64)[:4]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.5)
    inputs, targets = encml.share(x), encml.share(y)
    before = session.ledger.total
    F.mse_loss(model(inputs), targets).backward()
    optimizer.step()
    assert (session.ledger.total - before).rounds <= 120
    F.mse_loss(plain(x), y).backward()
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        near(q.grad.reveal(), p.grad, 200)
