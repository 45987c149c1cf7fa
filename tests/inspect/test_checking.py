"""encml.check names the module and operation that go wrong, and raises no alarm where all is well."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from party_threads import run_apart
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import encml
from encml import CheckError, Session, SharedTensor, UnsupportedOperation
from encml.inspect.opened import Shadows
from encml.models import seed_network
from encml.mpc.parties import Parties
from encml.tensor.secret import Secret
from encml.tensor.shared import secret

aten = torch.ops.aten
ULP = 2.0**-16


def perceptron() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def seeded_network() -> nn.Sequential:
    torch.manual_seed(1)
    return seed_network()


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def train(model: nn.Module, x: SharedTensor, y: SharedTensor, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()


# Nothing is wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "shape"), [(seeded_network, (1, 1, 28, 28)), (perceptron, (6, 20))])
def test_healthy_networks_raise_no_alarm(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = encml.share(make())
    x = encml.share(batch(*shape))
    y = encml.share(batch(shape[0], 10 if len(shape) == 4 else 4))
    with encml.check(model) as report:
        train(model, x, y, steps=1 if len(shape) == 4 else 3)
    assert report.findings == []
    assert report.first is None
    assert report.unchecked == set()
    leaves = {name for name, part in model.named_modules() if not [*part.children()] and type(part) is not nn.Flatten}
    for backward in (False, True):
        assert {place.module for place in report.records if place.backward == backward} == leaves | {None}
    assert all(record.total_error < 0.05 for record in report.records.values())
    assert any(record.total_error > 0 for record in report.records.values())
    assert all(record.headroom > 10 for record in report.records.values())


def test_checking_changes_nothing() -> None:
    """Results are the same to the bit, and so is what they cost."""
    found = []
    for checked in (False, True):
        with Session(seed=4) as session:
            model = encml.share(seeded_network())
            x, y = encml.share(batch(1, 1, 28, 28)), encml.share(batch(1, 10))
            if checked:
                with encml.check(model):
                    F.mse_loss(model(x), y).backward()
            else:
                F.mse_loss(model(x), y).backward()
            total = session.ledger.total
            gradients = [secret(p.grad).terms for p in model.parameters() if p.grad is not None]
            found.append((gradients, total.rounds, total.sent))
    (plain, *cost), (checked_terms, *checked_cost) = found
    assert cost == checked_cost
    assert len(plain) == 8
    assert all(torch.equal(a, b) for a, b in zip(plain, checked_terms, strict=True))


def test_updates_are_checked_one_by_one() -> None:
    """What is put off outside is looked at inside, where and when it is written."""
    model = encml.share(perceptron())
    x, y = encml.share(batch(6, 20)), encml.share(batch(6, 4))
    train(model, x, y, steps=1)
    with encml.check(model, stop=False) as report:
        train(model, x, y, steps=1)
        with torch.no_grad():
            model[0].weight.add_(model[0].weight * 2.0**20, alpha=2.0**29 + 0.5)
    assert [(finding.kind, finding.operation) for finding in report.findings] == [("overflow", "add_")]


def test_views_and_writes_in_place_keep_step() -> None:
    x = encml.share(batch(4, 6))
    with encml.check() as report:
        y = x * 3
        part = y.t()[1:3]
        part.mul_(x.t()[1:3])
        y[0] += 5
        part.t().copy_(part.t() * 2)
        y.unsqueeze_(0).relu_()
        z = torch.cat([y[0], x.reshape(2, 12).repeat(2, 1)[:, :6]]).flatten().sum(0)
    expected = batch(4, 6).double() * 3
    half = expected.t()[1:3]
    half.mul_(batch(4, 6).double().t()[1:3])
    expected[0] += 5
    half.mul_(2)
    expected.relu_()
    total = expected.sum() + batch(4, 6).reshape(2, 12).repeat(2, 1)[:, :6].double().sum()
    assert report.findings == []
    assert float((z.reveal().double() - total).abs()) < 100 * ULP
    (record,) = report.records.values()
    assert 0 < record.total_error < 100 * ULP


def test_comparisons_of_products_and_public_numbers_are_no_errors() -> None:
    x, y = encml.share(batch(500)), encml.share(batch(500).roll(1))
    with encml.check() as report:
        for result in (x * y < 0.1, (x * y).eq(x * y), x > y, 0.3 * x >= y, (x != y) & ~(x < 0)):
            assert isinstance(result, SharedTensor)
    assert report.findings == []


def test_a_plain_computation_is_left_alone() -> None:
    with encml.check(perceptron()) as report:
        perceptron()(batch(2, 20)).sum().backward()
    assert report.records == {}


def test_inference_mode_and_checkpoints_are_seen() -> None:
    model = encml.share(perceptron())
    x = encml.share(batch(2, 20)).requires_grad_()
    with encml.check(model) as report, torch.inference_mode():
        model(x)
    assert {place.module for place in report.records} == {"0", "1", "2", "3", "4"}
    with encml.check(model) as report:
        checkpoint(model, x, use_reentrant=False).sum().backward()
    assert report.findings == []
    assert {place.module for place in report.records if place.backward} >= {"0", "2", "4"}


def test_shadows_are_seen_through_views_and_go_with_their_secrets() -> None:
    x = encml.share(batch(4, 6))
    shadows = Shadows()
    near = shadows.of(x)
    assert torch.equal(near, x.reveal().double())
    shadows.set(x.t()[2], torch.zeros(4), torch.arange(4.0))
    assert shadows.of(x)[:, 2].tolist() == [0, 1, 2, 3]
    assert shadows.of(x.detach().view(-1))[2] == 0
    assert len(shadows) == 1
    del x
    gc.collect()
    assert len(shadows) == 0


# Something is wrong ------------------------------------------------------------------------------------------


def test_sums_that_overflow_are_named() -> None:
    plain = perceptron()
    plain[2].weight.data.fill_(1e5)
    model = encml.share(plain)
    x = encml.share(batch(6, 20) * 1e4)
    with pytest.raises(CheckError, match=r"overflow in 2 \(Linear\), operation addmm") as raised, encml.check(model):
        model(x)
    text = str(raised.value)
    assert "allowed is less than 1.074e+09 (2^30 at 32 fraction bits)" in text
    assert "scale the data or the weights down" in text
    assert f"{nn.__name__}" not in text
    assert "test_checking.py" in text
    assert "model(x)" in text


def test_a_convolution_inside_a_model_is_named() -> None:
    plain = nn.ModuleDict({"stem": nn.Conv2d(1, 4, 3), "tail": nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 2, 3))})
    nn.init.constant_(plain["tail"][1].weight, 3e4)
    nn.init.constant_(plain["stem"].weight, 1e3)
    model = encml.share(plain)
    with encml.check(model, stop=False) as report:
        model["tail"](model["stem"](encml.share(torch.ones(1, 1, 10, 10) * 10)))
    assert report.first is not None
    assert (report.first.module, report.first.operation, report.first.kind) == ("tail.1", "convolution", "overflow")
    assert report.first.place == "tail.1 (Conv2d)"
    assert not report.first.backward
    assert report.records[next(p for p in report.records if p.module == "tail.1")].headroom < 0


def test_the_sum_of_a_mean_overflows_though_the_mean_would_not() -> None:
    """Documented at SharedTensor: a mean of 65,536 squares needs squares below 2^14."""
    x = encml.share(torch.full((256, 256), 2.0**7.5))
    found = r"overflow in the program, operation mean: the sum"
    with pytest.raises(CheckError, match=found) as raised, encml.check():
        (x * x).mean()
    assert "(x * x).mean()" in str(raised.value)
    half = encml.share(torch.full((256, 256), 2.0**6.5))
    with encml.check():
        (half * half).mean()


def test_squares_overflow_by_themselves() -> None:
    x = encml.share(torch.tensor([3.0, 4e4]))
    with pytest.raises(CheckError, match=r"operation mul: the result reaches 1\.6e"), encml.check():
        (x * x).mean()


def test_a_window_of_a_pooling_overflows() -> None:
    x = encml.share(torch.full((1, 1, 40, 40), 2.0**20))
    product = x * 2.0**-6 * encml.share(torch.full((1, 1, 40, 40), 2.0**6))
    with pytest.raises(CheckError, match="operation avg_pool2d: a window's sum"), encml.check():
        F.avg_pool2d(product, 40)


_Compare = Callable[[Tensor], Any]
SIGNS: list[tuple[str, _Compare]] = [("relu", F.relu), ("gt", lambda x: x > 0), ("abs", torch.abs)]
DIFFERENCES: list[tuple[str, _Compare]] = [
    ("lt", lambda x: x[:1] < x[1:]),
    ("maximum", lambda x: torch.maximum(x[1:], x[:1])),
    ("clamp", lambda x: (x - x.flip(0)).clamp(-0.5, 0.5)),
    ("max", lambda x: x.max(0)),
    ("max_pool2d_with_indices", lambda x: F.max_pool2d(x.view(1, 1, 2, 1), (2, 1))),
]


@pytest.mark.parametrize("declared", [None, 32])
@pytest.mark.parametrize(
    ("operation", "f", "difference"), [(*case, False) for case in SIGNS] + [(*case, True) for case in DIFFERENCES]
)
def test_what_is_compared_beyond_the_range_is_named(
    operation: str, f: _Compare, difference: bool, declared: int | None
) -> None:
    """Just below the bound all is well; just above, where sums still are right, the check tells."""
    bound = 2.0**31 if declared is None else 2.0 ** (16 if difference else 15)
    with Session(seed=1, comparison_bits=declared):
        for size, wrong in ((0.99, False), (1.01, True)):
            one = size * bound / (2 if difference else 1)
            x = encml.share(torch.tensor([one / 4, -one / 4])) * 4
            with encml.check(stop=False) as report:
                f(x)
            named = [(finding.kind, finding.operation) for finding in report.findings]
            assert (("overflow", operation) in named) == wrong, report.findings


def test_a_sum_of_many_is_compared_within_twice_the_range() -> None:
    x = encml.share(torch.full((5,), 2.0**29))
    with encml.check() as report:
        assert (x[:3].sum() > 0).reveal()
    assert not report.findings
    with pytest.raises(CheckError, match="operation gt: the difference of the operands"), encml.check():
        _ = x.sum() > 0


def test_gradients_that_overflow_are_named_in_backward() -> None:
    model = encml.share(perceptron())
    x = encml.share(batch(6, 20))
    upstream = encml.share(torch.full((6, 8), 1e6))
    found = r"overflow in backward of 2 \(Linear\), operation mm"
    with encml.check(model):
        output = model[:3](x * 1e3)
        with pytest.raises(CheckError, match=found) as raised:
            output.backward(upstream)
    assert "output.backward(" in str(raised.value)


def test_findings_are_collected_where_asked() -> None:
    plain = perceptron()
    plain[2].weight.data.fill_(1e5)
    model = encml.share(plain)
    with encml.check(model, stop=False) as report:
        model(encml.share(batch(6, 20) * 1e4))
    assert len(report.findings) > 1
    assert report.first is report.findings[0]
    assert report.first.module == "2"
    text = str(report)
    assert "finding" in text
    assert "overflow in 2 (Linear)" in " ".join(text.split())


def test_an_error_beyond_three_decimals_is_a_finding_where_asked() -> None:
    model = encml.share(perceptron())
    found = "away from the float64 computation since the block began"
    with pytest.raises(CheckError, match=found), encml.check(model, tolerance=1e-7):
        model(encml.share(batch(6, 20)))
    with encml.check(model, tolerance=1e-2):
        model(encml.share(batch(6, 20)))


class _Faulty(nn.Module):
    """ReLU, or whatever the operation under test is."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


@pytest.mark.parametrize(
    ("operator", "operation", "off"),
    [
        (aten.relu.default, F.relu, 2),
        (aten.mm.default, lambda x: x @ x.t(), 2**18),
        (aten.view.default, lambda x: x.sum(0).view(3, 4) * 1, 0),
        (aten.lt.Tensor, lambda x: x[0] < x[1], 1),
        (aten.add_.Tensor, lambda x: x.clone().add_(x), 4),
    ],
)
def test_operations_that_are_off_by_little_are_found(
    monkeypatch: pytest.MonkeyPatch, operator: Any, operation: Callable[[Tensor], Tensor], off: int
) -> None:
    """A handler whose first result is ``off`` units of its last place wrong is named, with its module."""
    handler = SharedTensor.handlers[operator]

    def tampered(*args: Any, **kwargs: Any) -> Any:
        result = handler(*args, **kwargs)
        secret(result).terms[0].flatten()[0] += off
        return result

    model = nn.Sequential(nn.Identity(), _Faulty(operation))
    x = encml.share(batch(12, 12))
    with encml.check(model):
        model(x)
    monkeypatch.setitem(SharedTensor.handlers, operator, tampered)
    with encml.check(model, stop=False) as report:
        model(x)
    if off:
        assert report.first is not None
        assert (report.first.kind, report.first.module) == ("error", "1")
        assert report.first.operation == operator._schema.name.removeprefix("aten::")
        assert len(report.findings) == 1
    else:
        assert report.findings == []


def test_what_cannot_be_compared_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def reshaped(x: SharedTensor) -> SharedTensor:
        return SharedTensor(Secret(x.session, 16, payload=secret(x).payload.flatten(1)))

    monkeypatch.setitem(SharedTensor.handlers, aten.relu.default, reshaped)
    with encml.check() as report:
        F.relu(encml.share(batch(3, 4)))
    assert report.unchecked == {"relu"}
    assert "Not compared, for want of a plain counterpart: relu" in str(report)


def test_the_block_ends_cleanly_after_a_finding() -> None:
    plain = perceptron()
    plain[2].weight.data.fill_(1e5)
    model = encml.share(plain)
    with encml.check(model) as report, pytest.raises(CheckError):
        model(encml.share(batch(6, 20) * 1e4))
    seen = {place: record.operations for place, record in report.records.items()}
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in model.modules())
    model(encml.share(batch(6, 20) * 1e4))
    assert {place: record.operations for place, record in report.records.items()} == seen


def test_real_parties_are_refused() -> None:
    def script(parties: Parties) -> str:
        session = Session(parties.net)
        x = encml.share(torch.ones(3), session=session)
        with pytest.raises(UnsupportedOperation, match="in-process session alone") as raised, encml.check():
            x + x
        with pytest.raises(UnsupportedOperation, match="in-process session alone"):
            encml.check(encml.share(nn.Linear(2, 2), session=session)).__enter__()
        return str(raised.value)

    assert len(set(run_apart(script, seed=1)[0])) == 1
