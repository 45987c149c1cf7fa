"""PyTorch's own optimizers and gradient clipping on secrets, against float64; which optimizers are refused."""

from __future__ import annotations

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
