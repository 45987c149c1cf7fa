"""Losses and their gradients against float64, and what cross-entropy costs.

A mean over n rounds its factor 1/n by 2^-17 of itself, and so does every public weight: a few units of a loss of 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from party_threads import run_apart
from reference import ULP, grid, matches, near
from torch import Tensor, nn

import encml
from encml import Session, SharedTensor, UnsupportedOperation
from encml.errors import InvalidTensor
from encml.mpc.parties import Parties
from encml.tensor.handlers.signs import AT_ONCE
from encml.tensor.shared import secret

Function = Callable[..., Any]

ROWS, CLASSES = 6, 10
X = grid(ROWS, CLASSES, seed=1) * 2
Y = grid(ROWS, CLASSES, seed=5)
Z = grid(ROWS, CLASSES, seed=11)
LABELS = torch.tensor([3, 0, 9, 9, 4, 1])
WEIGHTS = (torch.arange(1, CLASSES + 1) / 8).double()
PROBABILITIES = ((torch.softmax(grid(ROWS, CLASSES, seed=3), 1) / ULP).round() * ULP).double()
BITS = (grid(ROWS, CLASSES, seed=8) > 0).double()
SIDES = 2 * BITS - 1
IMAGES = grid(2, 5, 3, 3, seed=2)
MAPS = torch.arange(18).view(2, 3, 3) % 5
IGNORING = torch.where(MAPS == 2, -100, MAPS)


# Cross-entropy -------------------------------------------------------------------------------------------------------

REDUCTIONS = ["mean", "sum", "none"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1},
    {"weight": WEIGHTS},
    {"weight": WEIGHTS, "label_smoothing": 0.25},
]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", SETTINGS)
def test_public_classes(options: dict[str, Any], reduction: str) -> None:
    matches(lambda x: F.cross_entropy(x, LABELS, reduction=reduction, **options), X, ulps=24, grad_ulps=4)
    matches(
        lambda x: F.cross_entropy(x, LABELS, reduction=reduction, ignore_index=9, **options), X, ulps=80, grad_ulps=4
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", SETTINGS)
def test_secret_classes(options: dict[str, Any], reduction: str) -> None:
    matches(lambda x, t: F.cross_entropy(x, t, reduction=reduction, **options), X, LABELS, ulps=60, grad_ulps=6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", SETTINGS)
def test_probabilities(options: dict[str, Any], reduction: str) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(x, t, reduction=reduction, **options)

    matches(lambda x: loss(x, PROBABILITIES), X, ulps=80, grad_ulps=5)
    matches(lambda x, t: loss(x, t.detach()), X, PROBABILITIES, ulps=160, grad_ulps=6)
    matches(loss, X, PROBABILITIES * 0.5, ulps=160, grad_ulps=16)


def test_secret_one_hot_rows() -> None:
    rows = F.one_hot(LABELS, CLASSES).double()
    matches(lambda x, t: F.cross_entropy(x, t.detach()), X, rows, ulps=3, grad_ulps=2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_secret_class_weights(smoothing: float, reduction: str) -> None:
    """Of a shared nn.CrossEntropyLoss they are a buffer."""
    module = nn.CrossEntropyLoss(WEIGHTS, reduction=reduction, label_smoothing=smoothing, ignore_index=9)
    shared = encml.share(module)
    found = shared(encml.share(X), LABELS)
    near(found.reveal(), module(X, LABELS), 100)
    module, shared = nn.NLLLoss(WEIGHTS, reduction=reduction), encml.share(nn.NLLLoss(WEIGHTS, reduction=reduction))
    near(shared(encml.share(X), LABELS).reveal(), module(X, LABELS), 8)
    near(shared(encml.share(X), encml.share(LABELS)).reveal(), module(X, LABELS), 8)


def test_images_and_single_rows() -> None:
    matches(lambda x: F.cross_entropy(x, IGNORING), IMAGES, ulps=3, grad_ulps=2)
    matches(lambda x, t: F.cross_entropy(x, t), IMAGES, MAPS, ulps=3, grad_ulps=2)
    matches(lambda x: F.cross_entropy(x, LABELS[0]), X[0], ulps=3, grad_ulps=2)
    matches(lambda x, t: F.cross_entropy(x, t), X[0], LABELS[0], ulps=3, grad_ulps=2)
    matches(nn.CrossEntropyLoss(reduction="none"), IMAGES, MAPS, public=(1,), ulps=3, grad_ulps=4)


def test_linear_cross_entropy() -> None:
    weight, bias = grid(CLASSES, 4, seed=21), grid(CLASSES, seed=22)
    matches(
        lambda x, w, b: F.linear_cross_entropy(x, w, LABELS, linear_bias=b), X[:, :4], weight, bias, ulps=4, grad_ulps=4
    )
    matches(
        lambda x, w: F.linear_cross_entropy(x, w, MAPS[0, :2].repeat(3, 1), reduction="sum"),
        X[:, :4],
        grid(5, 3, 4),
        ulps=9,
        grad_ulps=9,
    )


def test_public_scores_of_secret_targets() -> None:
    for target in (LABELS, PROBABILITIES):
        found = F.cross_entropy(X, encml.share(target))
        assert isinstance(found, SharedTensor)
        near(found.reveal(), F.cross_entropy(X, target), 40)


def test_scores_far_apart() -> None:
    """Certain and wrong, certain and right, undecided; losses as large as the difference of the scores."""
    x = torch.tensor(
        [[3000.0, 0.0, -3000.0], [0.0, 500.0, 0.0], [7.0, 7.0, 7.0], [-2000.0, 0.0, 0.25]], dtype=torch.float64
    )
    matches(lambda a: F.cross_entropy(a, torch.tensor([2, 1, 0, 0]), reduction="none"), x, ulps=4, grad_ulps=4)


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 5), st.integers(2, 40), st.floats(0.1, 30), st.integers(0, 99))
def test_any_size_and_scale(rows: int, classes: int, scale: float, seed: int) -> None:
    x = ((grid(rows, classes, seed=seed) * scale / ULP).round() * ULP).double()
    t = torch.arange(rows) % classes
    with Session(seed=3):
        matches(lambda a: F.cross_entropy(a, t, reduction="none"), x, ulps=4, grad_ulps=5)


def test_gradients_that_are_not_of_the_loss_alone() -> None:
    matches(lambda x: F.cross_entropy(x, LABELS) * 3 + x.sum(), X, ulps=10, grad_ulps=8)  # 3 (2 + 1) for the mean
    matches(
        lambda x: 0.5 * F.cross_entropy(x, LABELS) + 0.5 * F.cross_entropy(x, LABELS.flip(0)), X, ulps=8, grad_ulps=8
    )
    held = encml.share(X).requires_grad_()
    F.cross_entropy(held, LABELS).backward(torch.tensor(2.0, dtype=torch.float64))
    plain = X.clone().requires_grad_()
    (2 * F.cross_entropy(plain, LABELS)).backward()
    near(held.grad.reveal(), plain.grad, 3)
    loss = F.cross_entropy(held, LABELS)
    with pytest.raises(UnsupportedOperation, match="CrossEntropy: its gradient cannot be differentiated again"):
        torch.autograd.grad(loss, held, create_graph=True)


def test_functional_gradients() -> None:
    slope = torch.func.grad(lambda x: F.cross_entropy(x, LABELS))
    near(slope(encml.share(X)).reveal(), slope(X), 3)


def test_inference_mode() -> None:
    with torch.inference_mode():
        near(F.cross_entropy(encml.share(X), LABELS).reveal(), F.cross_entropy(X, LABELS), 3)
        near(F.nll_loss(encml.share(X), LABELS).reveal(), F.nll_loss(X, LABELS), 3)


def test_rounds_and_bytes_of_cross_entropy(session: Session) -> None:
    """A softmax over ten, its logarithm and its gradient are 47 rounds; secret labels are looked up meanwhile."""
    rows = 128
    x, labels = grid(rows, CLASSES, seed=1), torch.arange(rows) % CLASSES
    hot = F.one_hot(labels, CLASSES).double()
    for target, forward, backward, most in (
        (labels, 47, 0, 2900),
        (encml.share(labels), 47, 0, 3200),
        (encml.share(hot), 47, 0, 3000),
    ):
        held = encml.share(x).requires_grad_()
        start = session.ledger.total
        loss = F.cross_entropy(held, target)
        middle = session.ledger.total
        loss.backward()
        end = session.ledger.total
        assert (middle - start).rounds == forward
        assert (end - middle).rounds <= backward
        assert (end - start).bytes / 3 / rows < most


def test_probabilities_that_do_not_add_up_to_1() -> None:
    """Up to the range of what a gradient is multiplied by in the rounds of its softmax; class weights beyond it."""
    t = grid(ROWS, CLASSES, seed=3, low=0, high=4)
    for weight, ulps in (
        (None, 200),
        (torch.full((CLASSES,), 20.0).double(), 4000),
        (torch.arange(CLASSES) * 300.0, 1e6),
    ):
        held, plain = encml.share(X).requires_grad_(), X.clone().requires_grad_()
        F.cross_entropy(held, encml.share(t), weight).backward()
        F.cross_entropy(plain, t, None if weight is None else weight.double()).backward()
        assert held.grad is not None
        near(held.grad.reveal(), plain.grad, ulps)


def test_many_logits_save_bytes_instead_of_rounds(session: Session) -> None:
    x = encml.share(grid(256, CLASSES)).requires_grad_()
    with session.ledger.measure() as spent:
        F.cross_entropy(x, torch.arange(256) % CLASSES).backward()
    assert x.numel() > AT_ONCE
    assert spent[0].rounds == 47 + 3
    with session.ledger.measure() as spent, torch.no_grad():
        F.cross_entropy(x[:10], torch.arange(10) % CLASSES)
    assert spent[0].rounds == 47, "nobody learns from it, so there is no slope"


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    t = (x @ torch.randn(8, 3)).argmax(1)
    plain = nn.Linear(8, 3)
    model, held = encml.share(plain), encml.share(x)
    for net, data in ((plain, x), (model, held)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
        for _ in range(15):
            optimizer.zero_grad()
            F.cross_entropy(net(data), t).backward()
            optimizer.step()
    near(model.weight.reveal(), plain.weight, 400)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
def test_where_all_are_ignored_the_loss_is_nothing(loss: Function, reduction: str) -> None:
    ignored = torch.full((ROWS,), -100)
    matches(lambda x: loss(x, ignored, reduction=reduction), X, ulps=0, grad_ulps=0)
    if loss is F.cross_entropy:
        matches(lambda x: loss(x, ignored, reduction=reduction, label_smoothing=0.1), X, ulps=0, grad_ulps=0)


def test_what_cannot_be_is_said() -> None:
    x = encml.share(X)
    with pytest.raises(UnsupportedOperation, match="all targets are ignored"):
        F.cross_entropy(x, torch.full((ROWS,), -100))
    with pytest.raises(UnsupportedOperation, match="all ignored"):
        F.nll_loss(x, torch.full((ROWS,), -100))
    with pytest.raises(UnsupportedOperation, match="ignore_index=3 with secret classes"):
        F.cross_entropy(x, encml.share(LABELS), ignore_index=3)
    with pytest.raises(IndexError, match="out of bounds"):
        F.cross_entropy(x, LABELS + 1)
    with pytest.raises(InvalidTensor, match="one class for each row"):
        F.cross_entropy(x, LABELS[:-1])
    with pytest.raises(ValueError, match="reduction"):
        F.cross_entropy(x, LABELS, reduction="average")


# By log-probabilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_nll_loss(reduction: str, weight: Tensor | None) -> None:
    def loss(x: Tensor, t: Tensor) -> Tensor:
        return F.nll_loss(x, t, None if weight is None else weight[: x.shape[1]], reduction=reduction)

    matches(lambda x: loss(x, LABELS), X, ulps=4, grad_ulps=2)
    matches(lambda x: loss(x, IGNORING), IMAGES, ulps=4, grad_ulps=2)
    matches(loss, X, LABELS, ulps=6, grad_ulps=4)
    matches(lambda x: F.nll_loss(F.log_softmax(x, 1), LABELS), X, ulps=3, grad_ulps=3)


# Element by element --------------------------------------------------------------------------------------------------

DIFFERENCES: list[Function] = [
    F.l1_loss,
    F.mse_loss,
    F.huber_loss,
    lambda x, y, **options: F.huber_loss(x, y, delta=0.5, **options),
    F.smooth_l1_loss,
    lambda x, y, **options: F.smooth_l1_loss(x, y, beta=0.5, **options),
    lambda x, y, **options: F.smooth_l1_loss(x, y, beta=0.0, **options),
]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", DIFFERENCES)
def test_losses_of_differences(loss: Function, reduction: str) -> None:
    for public in ((), (0,), (1,)):
        matches(lambda x, y: loss(x, y, reduction=reduction), X, Y, ulps=8, grad_ulps=4, public=public)


def test_huber_loss_compares_once(session: Session) -> None:
    x, y = encml.share(X).requires_grad_(), encml.share(Y).requires_grad_()
    loss = F.huber_loss(x, y)
    before = session.ledger.total.rounds
    loss.backward()
    assert session.ledger.total.rounds - before <= 3
    # The clamped difference belongs to this y and this delta.
    for other, delta in ((encml.share(Z), 1.0), (y.detach(), 0.25)):
        x.grad = None
        F.huber_loss(x, other, delta=delta).backward()
        plain = X.clone().requires_grad_()
        F.huber_loss(plain, other.reveal(), delta=delta).backward()
        near(x.grad.reveal(), plain.grad, 2)


INSIDE = (((grid(ROWS, CLASSES, seed=6) + 2) / 4 * 0.9 + 0.05) / ULP).round() * ULP

OTHERS: list[tuple[Function, tuple[Tensor, ...], dict[str, Any]]] = [
    (F.binary_cross_entropy, (INSIDE, BITS), {"public": (1,), "ulps": 4, "grad_ulps": 24}),
    (lambda x, y: F.binary_cross_entropy(x, y, WEIGHTS), (INSIDE, BITS), {"public": (1,), "ulps": 6, "grad_ulps": 24}),
    (
        lambda x, y: F.binary_cross_entropy(x, y.detach(), reduction="sum"),
        (INSIDE, INSIDE.flip(0)),
        {"ulps": 70, "grad_ulps": 90},
    ),
    (F.binary_cross_entropy_with_logits, (X, BITS), {"public": (1,), "ulps": 3}),
    (F.binary_cross_entropy_with_logits, (X, BITS), {"public": (0,), "ulps": 3}),
    (F.binary_cross_entropy_with_logits, (X * 20, INSIDE), {"ulps": 20, "grad_ulps": 3}),
    (
        lambda x, y: F.binary_cross_entropy_with_logits(x, y, WEIGHTS, pos_weight=WEIGHTS.flip(0), reduction="none"),
        (X, BITS),
        {"public": (1,), "ulps": 8, "grad_ulps": 8},
    ),
    (lambda x, y: F.soft_margin_loss(x, y.detach()), (X, SIDES), {"ulps": 3}),
    (lambda x: F.soft_margin_loss(x, SIDES, reduction="none"), (X,), {"ulps": 3, "grad_ulps": 3}),
    (lambda x: F.multilabel_soft_margin_loss(x, BITS), (X,), {"ulps": 4, "grad_ulps": 2}),
    (lambda x: F.kl_div(F.log_softmax(x, 1), PROBABILITIES, reduction="batchmean"), (X,), {"ulps": 6, "grad_ulps": 3}),
    (lambda x, t: F.kl_div(x, t.detach(), reduction="sum"), (X, PROBABILITIES), {"ulps": 60, "grad_ulps": 2}),
    (lambda x, t: F.kl_div(x, t, log_target=True, reduction="sum"), (X, -Y.abs()), {"ulps": 400, "grad_ulps": 12}),
    (lambda x: F.hinge_embedding_loss(x, SIDES), (X,), {"ulps": 4, "grad_ulps": 2}),
    (lambda x, y: F.margin_ranking_loss(x, y, SIDES, margin=0.25), (X, Y), {"ulps": 4, "grad_ulps": 2}),
    (F.triplet_margin_loss, (X, Y, Z), {"ulps": 4, "grad_ulps": 3}),
    (lambda *t: F.triplet_margin_loss(*t, swap=True, reduction="none"), (X, Y, Z), {"ulps": 5, "grad_ulps": 8}),
    (F.triplet_margin_with_distance_loss, (X, Y, Z), {"ulps": 4, "grad_ulps": 4}),
    (lambda x, y: F.cosine_embedding_loss(x, y, SIDES[:, 0], margin=0.125), (X, Y), {"ulps": 4, "grad_ulps": 3}),
    (
        lambda x, y, s: F.cosine_embedding_loss(x, y, s.detach(), reduction="sum"),
        (X, Y, SIDES[:, 0]),
        {"ulps": 12, "grad_ulps": 8},
    ),
    (F.poisson_nll_loss, (Y, Z.abs()), {"ulps": 8, "grad_ulps": 8}),
    (lambda x: F.poisson_nll_loss(x, Z.abs().round(), full=True), (Y,), {"ulps": 12, "grad_ulps": 8}),
    (lambda x, y: F.gaussian_nll_loss(x, y, INSIDE), (X, Y), {"ulps": 80, "grad_ulps": 120}),
    (
        lambda x, y, v: F.gaussian_nll_loss(x, y, v, full=True),
        (X / 4, Y / 4, INSIDE + 0.5),
        {"ulps": 8, "grad_ulps": 8},
    ),
    (lambda x, y: F.gaussian_nll_loss(x, y, 0.5, reduction="none"), (X, Y), {"ulps": 80, "grad_ulps": 80}),
    (lambda x: F.multi_margin_loss(x, LABELS), (X,), {"ulps": 4, "grad_ulps": 2}),
    (lambda x: F.multi_margin_loss(x, LABELS, p=2, margin=0.5, weight=WEIGHTS), (X,), {"ulps": 12, "grad_ulps": 20}),
    (lambda x: F.multi_margin_loss(x, LABELS[0], reduction="sum"), (X[0],), {"ulps": 4, "grad_ulps": 2}),
    (
        lambda x: F.multilabel_margin_loss(
            x, torch.tensor([[3, 0, -1, 1, *[-1] * 6]] * 3 + [[-1] * 10, list(range(10)), [9, 9, 2] + [-1] * 7])
        ),
        (X,),
        {"ulps": 8, "grad_ulps": 4},
    ),
]


@pytest.mark.parametrize(("loss", "inputs", "allowed"), OTHERS)
def test_other_losses(loss: Function, inputs: tuple[Tensor, ...], allowed: dict[str, Any]) -> None:
    matches(loss, *inputs, **{"grad_ulps": 2, **allowed})


def test_logarithm_of_impossible_events_is_bounded() -> None:
    x = encml.share(torch.tensor([0.0, 1.0, 0.0, 1.0])).requires_grad_()
    losses = F.binary_cross_entropy(x, torch.tensor([1.0, 0.0, 0.0, 1.0]), reduction="none")
    found = losses.reveal().detach()
    assert (found[:2] > 11).all()
    assert (found[:2] < 15).all()
    near(found[2:], torch.zeros(2), 2)
    losses.sum().backward()
    slope = x.grad.reveal()
    assert slope[0] < -(2.0**15)
    assert slope[1] > 2.0**15


def test_logits_are_located_once(session: Session) -> None:
    x = encml.share(X).requires_grad_()
    loss = F.binary_cross_entropy_with_logits(x, BITS)
    before = session.ledger.total.rounds
    loss.backward()
    assert session.ledger.total.rounds - before <= 11


# Real parties --------------------------------------------------------------------------------------------------------


def _network() -> nn.Sequential:
    """Made before the parties' threads start: PyTorch's generator is one for all of them."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.GroupNorm(3, 3), nn.Flatten(), nn.LayerNorm(12),
        nn.RMSNorm(12), nn.Linear(12, 3),
    ).double()  # fmt: skip


def _work(parties: Parties | None, model: nn.Module) -> list[SharedTensor]:
    """Two steps of training through every norm, an evaluation, and one of each kind of loss."""

    def own(values: Tensor, owner: int) -> SharedTensor:
        knows = parties is None or parties.plays(owner)
        return encml.share(values if knows else torch.zeros_like(values), owner=owner)

    shared = encml.share(model)
    x, labels = own(grid(4, 1, 4, 4), 0), own(torch.tensor([0, 2, 1, 1]), 2)
    hot, a, b = own(F.one_hot(torch.tensor([0, 2, 1, 1])).double(), 1), own(X, 0).requires_grad_(), own(Y, 2)
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.1, momentum=0.9)
    kept: list[Any] = []
    for target in (labels, hot, torch.tensor([0, 2, 1, 1])):
        optimizer.zero_grad()
        loss = F.cross_entropy(shared(x), target, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        kept += [loss, *(p.grad for p in shared.parameters())]
    losses = [
        F.huber_loss(a, b), F.binary_cross_entropy_with_logits(a, b), F.nll_loss(a, LABELS),
        F.soft_margin_loss(a, SIDES), F.triplet_margin_loss(a, b, b + 1), F.cosine_embedding_loss(a, b, SIDES[:, 0]),
        a.std(), a.norm(3, dim=0).sum(),
    ]  # fmt: skip
    torch.stack(losses).sum().backward()
    return [
        *kept,
        *losses,
        a.grad,
        shared.eval()(x),
        *(t for t in shared.state_dict().values() if t.is_floating_point()),
    ]


def test_three_parties_apart_hold_the_shares_of_one_process() -> None:
    model = _network()

    def apart(parties: Parties) -> list[Tensor]:
        with Session(parties.net, seed=77):
            return [secret(x).settle().terms.clone() for x in _work(parties, model)]

    with Session(seed=77):
        together = [secret(x).settle().terms for x in _work(None, model)]
    results, _ = run_apart(apart, 77)
    for rank, found in enumerate(results):
        for i, (ours, expected) in enumerate(zip(found, together, strict=True)):
            assert torch.equal(ours, expected[[rank, (rank + 1) % 3]]), f"result {i} differs at party {rank}"
