"""encml.optim.Adam and AdamW against float64, step by step and in training; their cost and state; what is refused."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from party_threads import run_apart
from reference import ULP, grid, near
from torch import Tensor, nn

import encml
from encml import Session, SharedTensor
from encml.errors import InvalidTensor, UnsupportedOperation
from encml.mpc.parties import Parties
from encml.net.transport import PARTIES
from encml.optim import Adam, AdamW
from encml.tensor.shared import secret

Settings = dict[str, Any]


class Float64Adam:
    """Kingma and Ba's algorithm with eps under the root, gradients clipped to a range; PyTorch's decay and AMSGrad."""

    def __init__(self, values: list[Tensor], settings: Settings, decoupled: bool) -> None:
        defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2 if decoupled else 0.0}
        self.settings = {**defaults, "amsgrad": False, "maximize": False, "gradient_range": 32.0, **settings}
        self.values, self.decoupled, self.steps = [v.clone() for v in values], decoupled, 0
        self.m = [torch.zeros_like(v) for v in values]
        self.v = [torch.zeros_like(v) for v in values]
        self.high = [torch.zeros_like(v) for v in values]

    def step(self, gradients: list[Tensor]) -> None:
        s = self.settings
        (b1, b2), lr, bound = s["betas"], float(s["lr"]), s["gradient_range"]
        eps = max(s["eps"], bound * 2.0**-25)
        self.steps += 1
        c1, c2 = 1 - b1**self.steps, 1 - b2**self.steps
        for i, gradient in enumerate(gradients):
            g = -gradient if s["maximize"] else gradient
            if self.decoupled:
                self.values[i] *= 1 - lr * s["weight_decay"]
            else:
                g = g + s["weight_decay"] * self.values[i]
            g = g.clamp(-bound, bound)
            self.m[i] = b1 * self.m[i] + (1 - b1) * g
            self.v[i] = b2 * self.v[i] + (1 - b2) * g * g
            self.high[i] = torch.maximum(self.high[i], self.v[i])
            square = (self.high if s["amsgrad"] else self.v)[i] / c2
            self.values[i] -= lr * self.m[i] / c1 / torch.sqrt(square + eps**2)


SHAPES = [(4, 3), (3,), (), (2, 1, 2)]
SETTINGS: list[Settings] = [
    {}, {"lr": 0.1}, {"lr": 3e-5}, {"lr": torch.tensor(0.01)}, {"lr": 0.01, "betas": (0.5, 0.9)},
    {"lr": 0.01, "betas": (0.0, 0.99999)}, {"lr": 0.01, "weight_decay": 0.1}, {"lr": 0.01, "maximize": True},
    {"lr": 0.01, "maximize": True, "weight_decay": 0.03}, {"lr": 0.01, "amsgrad": True},
    {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1, "betas": (0.7, 0.8)}, {"lr": 0.01, "eps": 0.1},
    {"lr": 0.01, "gradient_range": 4.0}, {"lr": 0.01, "gradient_range": 256.0}, {"lr": 0.01, "gradient_range": 1},
]  # fmt: skip


def gradients(step: int) -> list[Tensor]:
    """On the grid, about 2^-7 to 2, now and then beyond every range or 0."""
    sizes = 2.0 ** grid(20, seed=7).abs().mul(-3.5)
    every = grid(20, seed=100 + step) * sizes
    every[step % 20] = 0.0
    every[19] = 0.0
    if step % 7 == 3:
        every[3] *= 300
    return [part.reshape(shape) for part, shape in zip(every.split([12, 3, 1, 4]), SHAPES, strict=True)]


def start() -> list[Tensor]:
    return [grid(*shape, seed=i) for i, shape in enumerate(SHAPES)]


def give(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = encml.share((value / ULP).round() * ULP) if parameter.ndim else encml.share(value)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [*((Adam, settings) for settings in SETTINGS), (AdamW, {"lr": 0.1}), (AdamW, SETTINGS[8]), (AdamW, SETTINGS[10])],
    ids=str,
)
def test_it_follows_float64(kind: type[Adam], settings: Settings) -> None:
    """12 steps with the same gradients, exact on the grid. Each rounds the change and the decay to a unit, and has the
    direction M / sqrt(V), of about 1, with an error of 2^-12."""
    steps, plain = 12, [(v / ULP).round() * ULP for v in start()]
    parameters = [nn.Parameter(encml.share(v)) for v in plain]
    expected = Float64Adam(plain, settings, kind is AdamW)
    optimizer = kind(parameters, **settings)
    for step in range(steps):
        given = [(g / ULP).round() * ULP for g in gradients(step)]
        give(parameters, given)
        expected.step(given)
        optimizer.step()
    allowed = steps * (2 + float(settings.get("lr", 1e-3)) / ULP * 2.0**-12)
    for parameter, value in zip(parameters, expected.values, strict=True):
        near(parameter.detach().reveal(), value, allowed)


@pytest.mark.parametrize(
    ("kind", "stock", "settings"),
    [
        (Adam, torch.optim.Adam, {"lr": 0.02}),
        (AdamW, torch.optim.AdamW, {"lr": 0.02, "amsgrad": True, "weight_decay": 0.05}),
    ],
)
def test_it_is_a_drop_in(kind: type[Adam], stock: type[torch.optim.Adam], settings: Settings) -> None:
    """PyTorch's own in float64, with its eps of 1e-8, on the gradients that rounding gives: the losses of 25 steps
    agree to a hundredth (0.002 is usual; a unit whose gradient is next to nothing may go either way)."""
    x, y = grid(32, 6), grid(32, 2, seed=1)
    losses: list[list[float]] = []
    for share, optimizer_of in ((lambda v: v, stock), (encml.share, kind)):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).double()
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(grid(*p.shape, seed=10 + i) / 4)
        model, inputs, targets = share(model), share(x), share(y)
        optimizer = optimizer_of(model.parameters(), **settings)
        losses.append([])
        for _ in range(25):
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            value = loss.detach()
            losses[-1].append(float(value.reveal() if isinstance(value, SharedTensor) else value))
    assert losses[0][-1] < 0.7 * losses[0][0]
    assert torch.allclose(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-2)


def test_small_gradients_move_parameters_by_the_learning_rate() -> None:
    """Where stock Adam's squares would be 0: 2^-12 each time, of one sign, moves by lr, as it does in float64; down to
    2^-16 by no less than a half of it."""
    for size, least in ((2.0**-12, 0.97), (2.0**-14, 0.9), (2.0**-16, 0.5)):
        parameter = nn.Parameter(encml.share(torch.zeros(50, dtype=torch.float64)))
        optimizer = Adam([parameter], lr=0.01)
        for _ in range(15):
            parameter.grad = encml.share(torch.full((50,), size, dtype=torch.float64))
            optimizer.step()
        moved = -parameter.detach().reveal() / 0.15
        assert float(moved.mean()) == pytest.approx((1 + least) / 2, abs=(1 - least) / 2 + 0.01)


def test_what_has_no_gradient_does_not_move() -> None:
    """Not by its noise either: zeros stay exactly, and one gradient does not push for ever."""
    still = nn.Parameter(encml.share(grid(20)))
    none = nn.Parameter(encml.share(grid(3)))
    optimizer = Adam([still, none], lr=0.1)
    for _ in range(5):
        still.grad = torch.zeros_like(still)
        optimizer.step()
    near(still.detach().reveal(), grid(20), 0)
    near(none.detach().reveal(), grid(3), 0)
    assert none not in optimizer.state
    still.grad = encml.share(torch.ones(20, dtype=torch.float64))
    optimizer.step()
    for _ in range(30):
        still.grad = torch.zeros_like(still)
        optimizer.step()
    assert float((still.detach().reveal() - grid(20)).abs().max()) < 1.0


def test_pending_gradients_bring_their_digits(session: Session) -> None:
    """A product that is still pending has 32 fraction bits: 2^-20 counts."""
    w = nn.Parameter(encml.share(torch.zeros(1, 4, dtype=torch.float64)))
    (encml.share(torch.full((1, 1), 2.0**-10, dtype=torch.float64)) @ w).mul(2.0**-10).sum().backward()
    assert secret(w.grad).pending or secret(w.grad).fraction_bits > 16
    Adam([w], lr=0.125).step()
    assert float(w.detach().reveal().mean()) < -0.05


# Cost ----------------------------------------------------------------------------------------------------------------


def spent(
    session: Session, shapes: list[tuple[int, ...]], kind: type[Adam] = Adam, **settings: Any
) -> tuple[int, float]:
    """Rounds and bytes a party of the third step."""
    parameters = [nn.Parameter(encml.share(grid(*shape))) for shape in shapes]
    optimizer = kind(parameters, lr=0.01, **settings)
    for _ in range(3):
        give(parameters, [grid(*shape, seed=5) for shape in shapes])
        with session.ledger.measure() as cost:
            optimizer.step()
    return cost[0].rounds, cost[0].bytes_per_party


@pytest.mark.parametrize(
    ("kind", "settings", "rounds"),
    [
        (Adam, {}, 50), (AdamW, {}, 50), (Adam, {"amsgrad": True}, 60), (Adam, {"weight_decay": 0.1}, 50),
        (AdamW, {"amsgrad": True, "maximize": True}, 60),
    ],
)  # fmt: skip
def test_rounds_do_not_grow_with_the_number_of_parameters(
    session: Session, kind: type[Adam], settings: Settings, rounds: int
) -> None:
    one, many = spent(session, [(7,)], kind, **settings), spent(session, [(7,), (2, 3), ()] * 6, kind, **settings)
    assert one[0] == many[0] <= rounds


def test_bytes(session: Session) -> None:
    """Per parameter and party, in many; all of it under the optimizer's name in the ledger."""
    n = 64 * 50
    assert spent(session, [(n,)])[1] / n < 301
    assert spent(session, [(n,)], AdamW)[1] / n < 308
    assert spent(session, [(n,)], amsgrad=True)[1] / n < 335
    assert {"Adam", "AdamW"} <= session.ledger.costs.keys()
    assert session.ledger.costs["copy_"].rounds == 0


# As PyTorch's optimizers are used ------------------------------------------------------------------------------------


def regression(seed: int = 0) -> tuple[nn.Module, Callable[[], Tensor]]:
    model = encml.share(nn.Linear(4, 2).double())
    x, y = encml.share(grid(16, 4)), encml.share(grid(16, 2, seed=1))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(grid(*p.shape, seed=seed) / 4)
    return model, lambda: F.mse_loss(model(x), y)


def train(model: nn.Module, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def test_schedulers() -> None:
    for make in (
        lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=4),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    ):
        parameter = nn.Parameter(encml.share(torch.zeros(3, dtype=torch.float64)))
        optimizer = AdamW([parameter], lr=0.125, weight_decay=0.0, betas=(0.9, 0.99))
        schedule = make(optimizer)
        path = 0.0
        for _ in range(3):
            path += optimizer.param_groups[0]["lr"]
            parameter.grad = encml.share(torch.ones(3, dtype=torch.float64))
            optimizer.step()
            schedule.step()
        near(parameter.detach().reveal(), torch.full((3,), -path, dtype=torch.float64), path / ULP * 2.0**-10 + 4)


def test_groups_closures_and_late_parameters() -> None:
    """Each group by its own settings; a group added later, and a parameter whose gradient comes later, start at 1."""
    a, b, c, d = (nn.Parameter(encml.share(torch.zeros(2, dtype=torch.float64))) for _ in range(4))
    optimizer = Adam([{"params": [a, d], "lr": 0.25}, {"params": [b]}], lr=0.5)
    calls: list[int] = []

    def closure() -> float:
        calls.append(1)
        assert torch.is_grad_enabled()
        for p in (a, b, c, *((d,) if len(calls) == 2 else ())):
            p.grad = encml.share(torch.ones(2, dtype=torch.float64))
        return 3.5

    assert optimizer.step(closure) == 3.5
    optimizer.add_param_group({"params": [c], "lr": 0.125})
    assert optimizer.step(closure) == 3.5
    for p, moved in ((a, 0.5), (b, 1.0), (c, 0.125), (d, 0.25)):
        near(p.detach().reveal(), torch.full((2,), -moved, dtype=torch.float64), moved / ULP * 2.0**-11 + 3)
    assert [int(optimizer.state[p]["step"]) for p in (a, b, c, d)] == [2, 2, 1, 1]


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_state_goes_into_a_file_and_back(kind: type[Adam], amsgrad: bool) -> None:
    """Three steps, a checkpoint, three more: as six in one go, but for rounding. The file is all shares."""
    model, loss = regression()
    optimizer = kind(model.parameters(), lr=0.05, amsgrad=amsgrad)
    train(model, loss, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, loss, optimizer, 3)
    resumed, loss_again = regression(seed=5)
    other = kind(resumed.parameters(), lr=0.7)
    file.seek(0)
    state = torch.load(file)
    resumed.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    names = {"scaled_mean", "scaled_square", *(("scaled_largest_square",) if amsgrad else ())}
    for parameter, entry in other.state.items():
        assert {n for n, v in entry.items() if isinstance(v, SharedTensor) and v.shape == parameter.shape} == names
    assert other.param_groups[0]["lr"] == 0.05
    train(resumed, loss_again, other, 3)
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        near(p.detach().reveal(), q.detach().reveal(), 60)


def test_state_of_pytorch_s_adam_is_refused() -> None:
    plain = nn.Linear(4, 2).double()
    stock = torch.optim.Adam(plain.parameters())
    plain(grid(2, 4)).sum().backward()
    stock.step()
    model, _ = regression()
    optimizer = Adam(model.parameters())
    with pytest.raises(InvalidTensor, match="found exp_avg, exp_avg_sq, step"):
        optimizer.load_state_dict(stock.state_dict())
    optimizer.load_state_dict(torch.optim.Adam(plain.parameters()).state_dict())  # nothing in it yet


@pytest.mark.parametrize("fraction_bits", [10, 12, 20, 24])
def test_other_fraction_bits(fraction_bits: int) -> None:
    with Session(seed=3, fraction_bits=fraction_bits):
        ulp = 2.0**-fraction_bits
        parameter = nn.Parameter(encml.share(torch.ones(4, dtype=torch.float64)))
        expected = Float64Adam([torch.ones(4, dtype=torch.float64)], {"lr": 0.0625}, False)
        optimizer = Adam([parameter], lr=0.0625)
        for step in range(10):
            g = (grid(4, seed=step) / ulp).round() * ulp
            parameter.grad = encml.share(g)
            optimizer.step()
            expected.step([g])
        found = parameter.detach().reveal()
        assert float((found - expected.values[0]).abs().max()) < 10 * (2 * ulp + 0.0625 * 2.0**-9)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"lr": -1.0}, "lr"), ({"lr": math.inf}, "lr"), ({"eps": -1e-3}, "eps"), ({"weight_decay": -1}, "weight_decay"),
        ({"betas": (1.0, 0.9)}, "betas"), ({"betas": (0.9, -0.1)}, "betas"),
        ({"gradient_range": 0.0}, "gradient_range"), ({"gradient_range": 1e4}, "gradient_range"),
    ],
)  # fmt: skip
def test_settings_out_of_range(settings: Settings, name: str) -> None:
    for kind in (Adam, AdamW):
        with pytest.raises(ValueError, match=name):
            kind([nn.Parameter(encml.share(grid(2)))], **settings)


def test_plain_parameters_are_refused() -> None:
    with pytest.raises(UnsupportedOperation, match=r"share the model before|torch\.optim\.Adam"):
        Adam(nn.Linear(2, 2).parameters())
    optimizer = AdamW([nn.Parameter(encml.share(grid(2)))])
    with pytest.raises(UnsupportedOperation, match="plain parameter"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert len(optimizer.param_groups) == 1


def test_sessions_are_not_mixed() -> None:
    with Session(seed=1):
        a = nn.Parameter(encml.share(grid(2)))
        with Session(seed=2):
            b = nn.Parameter(encml.share(grid(2)))
            a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
            with pytest.raises(InvalidTensor, match="different sessions"):
                Adam([a, b]).step()


def test_parties_apart_hold_the_shares_of_one_process() -> None:
    def work(parties: Parties | None) -> Iterator[SharedTensor]:
        parameters = [nn.Parameter(encml.share(grid(3, 2), owner=1)), nn.Parameter(encml.share(grid(5, seed=1)))]
        optimizer = AdamW(parameters, lr=0.1, amsgrad=True)
        for _ in range(2):
            for p in parameters:
                p.grad = encml.share(grid(*p.shape, seed=3), owner=2) * 0.5
            optimizer.step()
        yield from parameters
        yield from (v for entry in optimizer.state.values() for v in entry.values() if isinstance(v, SharedTensor))

    def apart(parties: Parties) -> list[Tensor]:
        with Session(parties.net, seed=7):
            return [secret(x).payload.clone() for x in work(parties)]

    results, _ = run_apart(apart, 7)
    with Session(seed=7):
        for i, x in enumerate(work(None)):
            for rank, found in enumerate(results):
                assert torch.equal(found[i], secret(x).payload[[rank, (rank + 1) % PARTIES]])
