"""Modules, their state, and torch.optim.SGD on secrets, against float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import ULP, grid, near
from torch import Tensor, nn

import encml
from encml import Session, SharedTensor, UnsupportedOperation
from encml.errors import SecretError


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


OPTIMIZERS: list[tuple[dict[str, Any], Callable[[torch.optim.Optimizer], Any] | None]] = [
    ({"lr": 0.125}, None),
    ({"lr": 0.1}, None),
    ({"lr": 0.1, "momentum": 0.9}, None),
    ({"lr": 0.1, "momentum": 0.9, "nesterov": True}, None),
    ({"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}, None),
    ({"lr": 0.1, "maximize": True, "weight_decay": 1e-3}, None),
    ({"lr": torch.tensor(0.1)}, None),
    ({"lr": 0.2, "momentum": 0.5}, lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5)),
    ({"lr": 0.2}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10)),
    ({"lr": 1e-3, "momentum": 0.9}, None),
    ({"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "maximize": True}, None),
    ({"lr": 0.1, "foreach": None, "fused": None, "differentiable": False}, None),
    ({"lr": 0.2, "momentum": 0.9}, lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=10)),
    ({"lr": 0.2}, lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: min(1.0, (n + 1) / 4))),
    ({"lr": 0.2}, lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.7)),
]


@pytest.mark.parametrize(("settings", "schedule"), OPTIMIZERS, ids=lambda value: "" if callable(value) else str(value))
def test_sgd_follows_float64(settings: dict[str, Any], schedule: Any) -> None:
    """Eight steps on a squared error. Each rounds gradient, momentum and parameter, the gradient's about ten products
    of values below 2 with rounded ones, scaled by lr and summed over steps by momentum: within 60 units in all."""
    x, y = grid(16, 6), grid(16, 2, seed=1)
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for i, p in enumerate(plain.parameters()):
            p.copy_(grid(*p.shape, seed=10 + i) / 4)
    shared = encml.share(plain)
    inputs, targets = encml.share(x), encml.share(y)
    optimizers = [torch.optim.SGD(m.parameters(), **settings) for m in (plain, shared)]
    schedules = [schedule(o) if schedule else None for o in optimizers]
    for _ in range(8):
        for model, optimizer, a, b, plan in zip(
            (plain, shared), optimizers, (x, inputs), (y, targets), schedules, strict=True
        ):
            optimizer.zero_grad()
            F.mse_loss(model(a), b).backward()
            optimizer.step()
            if plan is not None:
                plan.step()
    for p, q in zip(plain.parameters(), shared.parameters(), strict=True):
        near(q.reveal(), p, 60)


def test_training_lowers_the_loss() -> None:
    x, w = grid(64, 4), grid(4, 1, seed=1)
    model = encml.share(nn.Linear(4, 1).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs, targets = encml.share(x), encml.share(x @ w)
    losses = []
    for _ in range(60):
        optimizer.zero_grad(set_to_none=False)
        loss = F.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().reveal().item())
    assert losses[-1] < 0.01 * losses[0]


def test_sgd_with_groups_of_their_own_settings() -> None:
    x, y = grid(16, 4), grid(16, 2, seed=1)
    plain = nn.Linear(4, 2).double()
    shared = encml.share(plain)
    with torch.no_grad():
        for p, q in zip(plain.parameters(), shared.parameters(), strict=True):
            p.copy_(q.reveal())
    for model, a, b in ((plain, x, y), (shared, encml.share(x), encml.share(y))):
        groups = [{"params": [model.weight], "lr": 0.05, "momentum": 0.9}, {"params": [model.bias]}]
        optimizer = torch.optim.SGD(groups, lr=0.2)
        for _ in range(4):
            optimizer.zero_grad()
            F.mse_loss(model(a), b).backward()
            optimizer.step()
    for p, q in zip(plain.parameters(), shared.parameters(), strict=True):
        near(q.reveal(), p, 20)


def test_averaged_sgd_follows_float64() -> None:
    """Sums and products alone, too."""
    x, y = grid(16, 4), grid(16, 2, seed=1)
    plain = nn.Linear(4, 2).double()
    with torch.no_grad():
        for i, p in enumerate(plain.parameters()):
            p.copy_(grid(*p.shape, seed=10 + i) / 4)
    averages: list[Tensor] = []
    for model, a, b in ((encml.share(plain), encml.share(x), encml.share(y)), (plain, x, y)):
        optimizer = torch.optim.ASGD(model.parameters(), lr=0.1, t0=3, weight_decay=0.01)
        for _ in range(8):
            optimizer.zero_grad()
            F.mse_loss(model(a), b).backward()
            optimizer.step()
        averages.append(optimizer.state[model.weight]["ax"])
    near(averages[0].reveal(), averages[1], 30)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda p: torch.optim.Adam(p), r"encml\.optim\.Adam, which takes its arguments"),
        (lambda p: torch.optim.AdamW(p), r"encml\.optim\.AdamW, which takes its arguments"),
        (lambda p: torch.optim.Adam(p, amsgrad=True, foreach=False), r"encml\.optim\.Adam"),
        (lambda p: torch.optim.RMSprop(p), r"encml\.optim\.Adam or torch\.optim\.SGD"),
        (lambda p: torch.optim.Adagrad(p), r"encml\.optim\.Adam"),
        (lambda p: torch.optim.Adadelta(p), r"encml\.optim\.Adam"),
        (lambda p: torch.optim.Adamax(p), r"encml\.optim\.Adam"),
        (lambda p: torch.optim.NAdam(p), r"encml\.optim\.Adam"),
        (lambda p: torch.optim.RAdam(p), r"encml\.optim\.Adam"),
        (lambda p: torch.optim.Rprop(p), r"encml\.optim\.Adam"),
        (lambda p: torch.optim.Adafactor(p), r"encml\.optim\.Adam"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True), "fused"),
    ],
)
def test_other_optimizers_are_refused(make: Any, names: str, session: Session) -> None:
    """At the first step, before anything is sent or changed."""
    model = encml.share(nn.Linear(3, 2))
    optimizer = make(model.parameters())
    model(encml.share(torch.ones(1, 3))).sum().backward()
    before, value = session.ledger.rounds, model.bias.detach().clone()
    with pytest.raises(UnsupportedOperation, match=names):
        optimizer.step()
    assert session.ledger.rounds == before
    near(model.bias.reveal(), value.reveal(), 0)


def test_lbfgs_is_refused_by_name() -> None:
    model = encml.share(nn.Linear(3, 2))
    with pytest.raises(UnsupportedOperation, match=r"torch\.optim\.LBFGS is not fit"):
        torch.optim.LBFGS(model.parameters()).step(lambda: model(encml.share(torch.ones(1, 3))).sum())


def test_other_optimizers_train_plain_models_as_ever() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


def with_gradients(shapes: list[tuple[int, ...]], scale: float = 1.0) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The same parameters and gradients, plain and secret; one has no gradient."""
    plain = [nn.Parameter(grid(*shape, seed=i)) for i, shape in enumerate(shapes)]
    shared = [nn.Parameter(encml.share(p.detach())) for p in plain]
    for i, (p, q) in enumerate(zip(plain, shared, strict=True)):
        p.grad = (grid(*p.shape, seed=50 + i) * scale / ULP).round() * ULP
        q.grad = encml.share(p.grad)
    return [*plain, nn.Parameter(grid(2))], [*shared, nn.Parameter(encml.share(grid(2)))]


SHAPES = [(4, 3), (3,), (2, 1, 2), ()]


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize(
    ("max_norm", "norm_type", "scale"), [(1.0, 2.0, 1), (100.0, 2.0, 1), (0.5, 1.0, 1), (0.25, math.inf, 1), (1, 2, 8)]
)
def test_norms_of_gradients_are_clipped(max_norm: float, norm_type: float, scale: float, foreach: bool | None) -> None:
    """By PyTorch's own function. The norm is off by 2 units; the coefficient by 2 and by 2^-12 of itself, the gradient
    by what that makes of it and a unit."""
    plain, shared = with_gradients(SHAPES, scale)
    expected = nn.utils.clip_grad_norm_(plain, max_norm, norm_type, foreach=foreach)
    found = nn.utils.clip_grad_norm_(shared, max_norm, norm_type, foreach=foreach)
    assert isinstance(found, SharedTensor)
    near(found.reveal(), expected, 4)
    for p, q in zip(plain[:-1], shared[:-1], strict=True):
        near(q.grad.reveal(), p.grad, 1 + 2 * scale * (3 + min(1, max_norm / float(expected)) / ULP * 2.0**-11))
    assert shared[-1].grad is None


def test_norms_of_gradients_that_are_no_risk_stay() -> None:
    """All zero, and nothing to clip at all."""
    parameter = nn.Parameter(encml.share(grid(5)))
    parameter.grad = torch.zeros_like(parameter)
    near(nn.utils.clip_grad_norm_([parameter], 1.0, error_if_nonfinite=True).reveal(), torch.tensor(0.0), 0)
    near(parameter.grad.reveal(), torch.zeros(5), 0)
    assert nn.utils.clip_grad_norm_([nn.Parameter(encml.share(grid(2)))], 1.0) == 0


@pytest.mark.parametrize("foreach", [None, True])
def test_gradients_are_clipped_by_value(foreach: bool | None) -> None:
    plain, shared = with_gradients(SHAPES)
    for parameters in (plain, shared):
        nn.utils.clip_grad_value_(parameters, 0.75, foreach=foreach)
    for p, q in zip(plain[:-1], shared[:-1], strict=True):
        near(q.grad.reveal(), p.grad, 0)


def test_total_norms_and_clipping_by_them() -> None:
    plain, shared = with_gradients(SHAPES)
    norms = [nn.utils.get_total_norm([p.grad for p in ps[:-1]]) for ps in (plain, shared)]
    near(norms[1].reveal(), norms[0], 3)
    for parameters, norm in zip((plain, shared), norms, strict=True):
        nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
    for p, q in zip(plain[:-1], shared[:-1], strict=True):
        near(q.grad.reveal(), p.grad, 12)


def rounds_of(session: Session, what: Callable[[list[nn.Parameter]], Any], count: int) -> int:
    _, shared = with_gradients([(4, 3), (3,)] * count)
    for q in shared[:-1]:
        q.grad = q.grad * encml.share(torch.ones(()).double())
    with session.ledger.measure() as spent:
        what(shared)
    return spent[0].rounds


@pytest.mark.parametrize(
    "what",
    [
        lambda p: nn.utils.clip_grad_norm_(p, 1.0, foreach=True),
        lambda p: nn.utils.clip_grad_value_(p, 1.0, foreach=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=True).step(),
    ],
)
def test_all_parameters_share_rounds_where_foreach_is_asked_for(session: Session, what: Any) -> None:
    assert rounds_of(session, what, 1) == rounds_of(session, what, 5)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"lr": 0.1, "maximize": True, "weight_decay": 0.1},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}, {"lr": torch.tensor(0.1)},
    ],
)  # fmt: skip
def test_sgd_for_all_parameters_at_once(settings: dict[str, Any]) -> None:
    plain, shared = with_gradients(SHAPES)
    for parameters in (plain, shared):
        optimizer = torch.optim.SGD(parameters, **settings, foreach=True)
        for _ in range(4):
            optimizer.step()
    for p, q in zip(plain, shared, strict=True):
        near(q.detach().reveal(), p.detach(), 16)


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


def truncation(n: int, shift: int) -> int:
    """Bytes in all: the third row, the dealt product of bits, two openings of a bit, and the resharing."""
    return n * (8 + (2 if shift <= 16 else 4) + 16) + 2 * -(-n // 8)


def relu(n: int) -> int:
    """Bytes in all: 64 planes of one side, 63 of generate bits, 118 gates, and a selection."""
    words = -(-n // 64)
    return 8 * words * (64 + 2 * 63 + 3 * 118) + 32 * n


@pytest.mark.parametrize("batch", [1, 3])
def test_the_seed_network_costs_what_it_should(session: Session, batch: int) -> None:
    """42 rounds up to the settled logits: three of 3 + 10 and a last truncation of 3. It agrees with plaintext."""
    plain = seed_network().double()
    model, x = encml.share(plain).eval(), grid(batch, 1, 28, 28, low=0, high=1)
    shared = encml.share(x)
    before = session.ledger.total
    with torch.no_grad():
        logits = model(shared)
        encml.tensor.shared.secret(logits).settle()
    spent = session.ledger.total - before
    assert spent.rounds == 42
    sizes = [batch * 16 * 13 * 13, batch * 32 * 5 * 5, batch * 64]
    assert spent.bytes == sum(truncation(n, 18) + relu(n) for n in sizes) + truncation(batch * 10, 16)
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
