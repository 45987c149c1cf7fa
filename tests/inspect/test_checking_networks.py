"""encml.check on what models are made of: no false alarms, forward and backward, and the faults that matter there."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import encml
from encml import CheckError
from encml.inspect.bounds import Bounds
from encml.inspect.opened import Opened, Shadows

LABELS = torch.tensor([1, 0, 3, 2])


def batch(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(2)
    return make()


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4)
    )


class Attention(nn.Module):
    """A causal self-attention between layer norms, and a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(8), nn.RMSNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        y = self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return self.head(F.normalize(self.after(x + y), dim=-1)).mean(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize(
    ("make", "x"),
    [(convolutional, batch(4, 2, 8, 8)), (Attention, batch(4, 3, 8)), (Recurrent, batch(4, 3, 8))],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_training_and_evaluation_raise_no_alarm(make: Callable[[], nn.Module], x: Tensor) -> None:
    model, secret_x = encml.share(seeded(make)), encml.share(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with encml.check(model) as report:
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(secret_x), encml.share(LABELS)).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            model(secret_x)
    assert report.findings == []
    assert report.unchecked == set()
    worst = max(report.records.values(), key=lambda record: record.total_error)
    assert worst.total_error < 0.02, worst
    assert {place.module for place in report.records if place.backward and place.module} >= {
        name for name, part in model.named_modules() if type(part) in (nn.Linear, nn.LayerNorm, nn.Conv2d)
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01, foreach=True),
        lambda p: encml.optim.Adam(p, lr=0.01),
    ],
    ids=["SGD, foreach", "Adam"],
)
def test_optimizers_raise_no_alarm_and_are_followed(
    make: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
) -> None:
    model, x = encml.share(seeded(lambda: nn.Linear(6, 3))), encml.share(batch(4, 6))
    optimizer = make(model.parameters())
    with encml.check(model) as report:
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
        model(x)
    assert report.findings == []
    assert all(record.total_error < 0.01 for record in report.records.values())


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.sort(1)[0] + x.topk(6, 1)[0],
        lambda x: x.gather(1, x.argmax(1, keepdim=True)),
        lambda x: F.one_hot(encml.share(LABELS), 6).float() * x,
        lambda x: x / (x.abs() + 0.1) + (x.abs() + 0.1).rsqrt(),
        lambda x: torch.where(x > 0, x.exp(), (1 + x.abs()).log()),
        lambda x: x.clamp(-1, 1).cumprod(1),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
        lambda x: x.masked_fill(torch.eye(6)[:4] == 1, float("-inf")).softmax(1),
        lambda x: F.max_pool1d(x.relu()[None], 2),
        lambda x: F.normalize(x) * x.norm() + x.std(1, keepdim=True),
        lambda x: F.huber_loss(x, x.detach() / 2) + F.binary_cross_entropy_with_logits(x, (x.detach() > 0).float()),
        lambda x: F.dropout(x, 0.5),
    ],
)
def test_operations_raise_no_alarm(operation: Callable[[Tensor], Tensor]) -> None:
    x = encml.share(batch(4, 6)).requires_grad_()
    with encml.check() as report:
        result = operation(x)
        (result * result.detach()).sum().backward()
    assert report.findings == []
    assert report.unchecked == set()


def test_what_is_never_looked_at_is_not_worked_out() -> None:
    """The indices of a max-pool are there for backward alone; a look at them would cost rounds."""
    x = encml.share(batch(2, 2, 4, 4)).requires_grad_()
    with encml.profile() as plain:
        F.max_pool2d(x, 2).sum().backward()
    with encml.check() as report, encml.profile() as checked:
        F.max_pool2d(x, 2).sum().backward()
    assert report.findings == []
    assert (checked.total.rounds, checked.total.sent) == (plain.total.rounds, plain.total.sent)


class Ratio(nn.Module):
    """Shares of a sum; where the sum is almost zero, they are beyond all bounds."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.sum(1, keepdim=True)


@pytest.mark.parametrize(("total", "what"), [(0.0, "infinite or undefined"), (2.0**-16, "reaches 1.311e")])
def test_a_division_by_almost_zero_is_named(total: float, what: str) -> None:
    model = nn.Sequential(nn.Identity(), Ratio())
    x = encml.share(torch.tensor([[20000.0, total - 20000.0], [1.0, 2.0]], dtype=torch.float64))
    with pytest.raises(CheckError, match=r"overflow in 1 \(Ratio\), operation div") as raised, encml.check(model):
        model(x)
    assert what in str(raised.value)
    assert "x / x.sum(1, keepdim=True)" in str(raised.value)


def test_squares_of_a_norm_overflow_and_are_named_though_the_norm_itself_is_small() -> None:
    model = nn.Sequential(nn.Identity(), nn.LayerNorm(300))
    x = encml.share(batch(2, 300) * 1e5)
    with pytest.raises(CheckError, match=r"in 1 \(LayerNorm\), operation native_layer_norm"), encml.check(model):
        model(x)


def test_functions_that_are_no_operators_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-entropy is one protocol from logits to loss."""
    x = encml.share(batch(4, 4))
    own = encml.SharedTensor.functions[F.cross_entropy]
    with encml.check() as report:
        F.cross_entropy(x, encml.share(LABELS))
    assert [record.total_error < 1e-3 for record in report.records.values()] == [True]
    monkeypatch.setitem(
        encml.SharedTensor.functions, F.cross_entropy, lambda *args, **kwargs: own(*args, **kwargs) + 0.5
    )
    with pytest.raises(CheckError, match="operation cross_entropy"), encml.check():
        F.cross_entropy(x, encml.share(LABELS))


def test_bounds_are_as_tight_as_said() -> None:
    """The bound of a curve is 2 ulp or 2^-12, of a product 1 ulp, of a comparison nothing."""
    x = encml.share(torch.tensor([0.5, 8.0]))
    exact = torch.tensor([1.0, 100.0], dtype=torch.float64)

    def bounds(func: object, *args: object) -> Bounds:
        return Bounds(func, (args, {}), Opened([x], Shadows()), x.session)

    aten, ulp = torch.ops.aten, 2.0**-16
    assert torch.as_tensor(bounds(aten.exp.default, x).error(exact, False)).tolist() == [2.0**-12, 100 * 2.0**-12]
    assert torch.as_tensor(bounds(aten.log.default, x).error(exact / 1000, False)).tolist()[0] == 2 * ulp
    assert bounds(aten.mul.Tensor, x, x).error(exact, False) == ulp
    assert float(torch.as_tensor(bounds(aten.mul.Tensor, x, 0.3).error(exact, False)).max()) <= ulp * (1 + 2.4001)
    tolerated = bounds(aten.lt.Tensor, x, x).may_differ()
    assert tolerated is not None
    assert not tolerated.any()
    assert bounds(aten.mul.Tensor, x, x).range_bits(32) == 30
    assert bounds(aten.exp.default, x).range_bits(16) == 30
    assert bounds(aten.add.Tensor, x, x).range_bits(16) == 46
