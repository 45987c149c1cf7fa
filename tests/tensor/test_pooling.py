"""Pools: values, gradients, costs; and among real parties, with convolutions and resampling."""

from __future__ import annotations

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
from encml import Session, UnsupportedOperation
from encml.mpc.ordering import maximum_cost
from encml.mpc.parties import Parties
from encml.ring.kernels import window_places
from encml.tensor.handlers.maxima import stages_of
from encml.tensor.secret import Deferred, Secret
from encml.tensor.shared import SharedTensor, secret

SHAPES = {1: (2, 3, 9), 2: (2, 3, 7, 8), 3: (2, 2, 5, 4, 6)}

# Averages ------------------------------------------------------------------------------------------------------------

AVG: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
POOLS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": (2, 4)},
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 1},
    {"kernel_size": 2, "stride": (3, 1)},
    {"kernel_size": 4, "padding": 2},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": (1, 0), "stride": 2, "count_include_pad": False},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True, "padding": 1, "count_include_pad": False},
    {"kernel_size": (3, 2), "stride": (2, 3), "ceil_mode": True, "padding": 1},
    {"kernel_size": 2, "divisor_override": 3},
    {"kernel_size": 1},
]


@pytest.mark.parametrize("settings", POOLS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 7, 8), (3, 7, 8), (0, 3, 7, 8)])
def test_avg_pool2d(settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    """One rounding, and the divisor's to 2^-f of means below 2 (3 with the override); 9 overlapping gradients."""
    matches(lambda a: F.avg_pool2d(a, **settings), grid(*shape), ulps=5, grad_ulps=1 + 9 * 3)


@pytest.mark.parametrize("settings", POOLS, ids=str)
def test_avg_pool2d_is_the_layer_and_takes_pending_products(settings: dict[str, Any]) -> None:
    layer = nn.AvgPool2d(**settings)
    x, weight = grid(2, 2, 7, 8, seed=1), grid(3, 2, 1, 1, seed=2)
    matches(lambda a, w: layer(F.conv2d(a, w)), x, weight, ulps=10, grad_ulps=[1 + 9 * 3 * 12, 2 * 56 * 28])


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("dims", [1, 3])
def test_avg_pool1d_and_avg_pool3d(dims: int, settings: dict[str, Any]) -> None:
    """As for avg_pool2d; up to 27 overlapping gradients, of which at most 8 meet at one place."""
    matches(lambda a: AVG[dims](a, **settings), grid(*SHAPES[dims]), ulps=5, grad_ulps=1 + 8 * 3)
    matches(lambda a: AVG[dims](a[0], **settings), grid(*SHAPES[dims]), ulps=5, grad_ulps=1 + 8 * 3)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_pooling_by_powers_of_two_is_one_truncation(dims: int, session: Session) -> None:
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    x, weight = grid(2, 2, *(4,) * dims, seed=1), grid(3, 2, *(1,) * dims, seed=2)
    matches(lambda a, w: AVG[dims](convolve(a, w), 2), x, weight)
    matches(lambda a: AVG[dims](a, 2), x)
    y, rounds = encml.share(x), session.ledger.total.rounds
    AVG[dims](convolve(y, encml.share(weight)), 2)
    assert session.ledger.total.rounds == rounds + 1  # of sharing the weight


ADAPTIVE: list[tuple[int, Any]] = [
    (1, 1), (1, 3), (1, 4), (1, 9), (1, 12),
    (2, 1), (2, (1, 1)), (2, 3), (2, (7, 4)), (2, (None, 5)), (2, (5, 3)), (2, 9),
    (3, 1), (3, (2, 3, 4)), (3, (5, 2, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("dims", "size"), ADAPTIVE, ids=str)
def test_adaptive_avg_pools(dims: int, size: Any) -> None:
    """A rounding, and that of 1 / the window's size of a mean below 2; up to 3^d windows meet at one place."""
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[dims]
    matches(lambda a: pool(a, size), grid(*SHAPES[dims]), ulps=4, grad_ulps=1 + 27 * 3)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_adaptive_pools_as_layers(size: int) -> None:
    matches(nn.AdaptiveAvgPool2d(size), grid(3, 4, 4), ulps=4, grad_ulps=28)
    matches(nn.AdaptiveMaxPool2d(size), grid(3, 4, 4), ulps=0, grad_ulps=0)


def test_area_interpolation_is_an_adaptive_average() -> None:
    matches(lambda a: F.interpolate(a, size=(3, 4), mode="area"), grid(1, 2, 7, 8), ulps=4, grad_ulps=28)


@pytest.mark.parametrize(("dims", "norm"), [(1, 2), (2, 2), (2, 1)])
def test_lp_pools(dims: int, norm: int) -> None:
    """Powers, an average pool, a product with the window's size of up to 4, and a root of values from 0.2."""
    pool = {1: F.lp_pool1d, 2: F.lp_pool2d}[dims]
    matches(lambda a: pool(a, norm, 2), grid(2, 3, *(6, 6)[:dims], low=0.2), ulps=40, grad_ulps=400)


# Maxima --------------------------------------------------------------------------------------------------------------

MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
WINDOWS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": 3},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 2, "stride": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 2, "stride": 3, "ceil_mode": True, "padding": 1},
    {"kernel_size": 2, "dilation": 2},
    {"kernel_size": 3, "dilation": 2, "padding": 1, "stride": 1},
]


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("settings", WINDOWS, ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_max_pools_are_exact(dims: int, settings: dict[str, Any]) -> None:
    """Also negative values at a padded edge, where zeros would win; gradients go to the winners alone."""
    shape = SHAPES[dims] if settings["kernel_size"] != 3 or dims < 3 else (1, 2, 5, 5, 5)
    matches(lambda a: MAX[dims](a, **settings), grid(*shape), ulps=0, grad_ulps=0)
    matches(lambda a: MAX[dims](a[0], **settings), grid(*shape, low=-3, high=-1), ulps=0, grad_ulps=0)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_max_pool2d_of_any_geometry(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, dilation = pair(1, 3), pair(1, 3), pair(1, 2)
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    least = [dilation[d] * (kernel[d] - 1) + 1 for d in (0, 1)]
    size = [data.draw(st.integers(n, n + 4)) for n in least]
    ceil = data.draw(st.booleans())
    x = grid(data.draw(st.integers(0, 2)), 2, *size, low=-2, high=-1)
    with Session(seed=2):
        matches(lambda a: F.max_pool2d(a, kernel, stride, padding, dilation, ceil), x, ulps=0, grad_ulps=0)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize(("dims", "size"), ADAPTIVE, ids=str)
def test_adaptive_max_pools(dims: int, size: Any) -> None:
    pool = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}[dims]
    matches(lambda a: pool(a, size), grid(*SHAPES[dims]), ulps=0, grad_ulps=0)


@pytest.fixture(params=[False, True], ids=["whole windows", "dimension by dimension"])
def one_by_one(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to find maxima, at sizes at which only one would be chosen."""
    worth = 0 if request.param else 1 << 40
    monkeypatch.setattr("encml.tensor.handlers.maxima._price", lambda stages: -worth if len(stages) == 1 else -1)


@pytest.mark.usefixtures("one_by_one")
def test_the_first_of_equals_wins_as_in_pytorch() -> None:
    ties = torch.tensor([1.0, 1.0, 0.0, 1.0, -1.0, -1.0, 2.0, 2.0], dtype=torch.float64).view(1, 1, 2, 4)
    matches(lambda a: F.max_pool2d(a, 2), ties, ulps=0, grad_ulps=0)
    matches(lambda a: F.max_pool2d(a, 2, 1, 1), ties, ulps=0, grad_ulps=0)
    matches(lambda a: F.adaptive_max_pool2d(a, (1, 3)), ties, ulps=0, grad_ulps=0)


def test_max_pools_at_the_edges_of_the_range() -> None:
    edge = 2.0**30 - ULP
    x = torch.tensor([edge, -edge, ULP, -ULP, 0.0, -edge, -edge, -edge], dtype=torch.float64).view(1, 2, 4)
    matches(lambda a: F.max_pool2d(a, 2), x, ulps=0, grad_ulps=0)
    matches(lambda a: F.max_pool2d(a, 2, 1, 1), x, ulps=0, grad_ulps=0)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.max_pool2d(x * x, 2),
        lambda x: F.max_pool2d(F.relu(x), 3, 2, 1),
        lambda x: F.relu(F.max_pool2d(x, 2, 1)),
        lambda x: F.max_pool2d(x.permute(0, 1, 3, 2), 2),
        lambda x: F.max_pool2d(x[:, :1].expand(2, 3, 7, 8), 2),
        lambda x: F.max_pool2d(x[:, :, 1:, ::2], 2),
        lambda x: F.max_pool2d(F.max_pool2d(x, 2), 2),
    ],
)
def test_max_pools_among_other_operations(f: Any) -> None:
    """At most one rounding before the pool, and of the gradient's product with values below 2."""
    matches(f, grid(2, 3, 7, 8), ulps=1, grad_ulps=4)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_indices(dims: int, session: Session) -> None:
    """They are secret int64 numbers, worked out when they are used and not before."""
    x = grid(*SHAPES[dims])
    for plain, shared in (
        (MAX[dims](x, 2, 2, 1, return_indices=True), MAX[dims](encml.share(x), 2, 2, 1, return_indices=True)),
        (_adaptive(dims, x), _adaptive(dims, encml.share(x))),
    ):
        values, indices = shared
        near(values.reveal(), plain[0], 0)
        assert indices.dtype == torch.int64
        assert torch.equal(indices.reveal(), plain[1])
        assert torch.equal((indices + 1).reveal(), plain[1] + 1)


def _adaptive(dims: int, x: Tensor) -> tuple[Tensor, Tensor]:
    pool = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}[dims]
    result: tuple[Tensor, Tensor] = pool(x, 3, return_indices=True)
    return result


GAMES: list[tuple[int, tuple[int, ...], tuple[int, ...], list[tuple[int, int]]]] = [
    # dims, shape, arguments, (k, n) of every stage
    (2, (2, 3, 6, 8), (2,), [(4, 2 * 3 * 3 * 4)]),
    (2, (2, 3, 7, 8), (3, 2, 1), [(9, 2 * 3 * 4 * 4)]),
    (2, (1, 4, 64, 64), (3, 2, 1), [(3, 4 * 64 * 32), (3, 4 * 32 * 32)]),
    (2, (1, 4, 64, 64), (2,), [(4, 4 * 32 * 32)]),
    (1, (2, 3, 9), (3,), [(3, 2 * 3 * 3)]),
    (3, (1, 2, 24, 24, 24), (3, 2, 1), [(3, 2 * 24 * 24 * 12), (3, 2 * 24 * 12 * 12), (3, 2 * 12 * 12 * 12)]),
]


@pytest.mark.parametrize(("dims", "shape", "arguments", "stages"), GAMES, ids=str)
def test_costs_of_max_pools(
    dims: int, shape: tuple[int, ...], arguments: Any, stages: list[tuple[int, int]], session: Session
) -> None:
    """Forward: tournaments alone. Backward compares nothing: it selects for all places but one. Then the indices."""
    x = encml.share(grid(*shape)).requires_grad_()
    before = session.ledger.total
    y, indices = MAX[dims](x, *arguments, return_indices=True) if dims > 1 else (MAX[dims](x, *arguments), None)
    spent, games = session.ledger.total - before, [maximum_cost(k, n, bits=48, winner=True) for k, n in stages]
    assert (spent.rounds, spent.bytes) == (sum(rounds for rounds, _ in games), sum(sent for _, sent in games))
    upstream, before = encml.share(grid(*y.shape)), session.ledger.total
    before = session.ledger.total
    y.backward(upstream)
    spent = session.ledger.total - before
    assert (spent.rounds, spent.bytes) == (2 * len(stages), sum(32 * (k - 1) * n for k, n in stages))
    if indices is None:
        return
    for again in (False, True):
        before = session.ledger.total
        secret(indices).settle()
        spent = session.ledger.total - before
        expected = (0, 0) if again else (2 * len(stages), sum(16 * k * n for k, n in stages))
        assert (spent.rounds, spent.bytes) == expected


def test_overlapping_windows_share_comparisons() -> None:
    """The first pool of a ResNet: a quarter fewer bytes than tournaments over whole windows."""
    places = [window_places(112, 3, 2, 1, 1, 56)] * 2
    games = [maximum_cost(stage.k, stage.windows, winner=True) for stage in stages_of((1, 64, 112, 112), places)]
    assert len(games) == 2
    assert sum(sent for _, sent in games) < 0.77 * maximum_cost(9, 64 * 56 * 56, winner=True)[1]


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("dims", [2, 3])
def test_unpooling(dims: int) -> None:
    """With the secret indices that a pool gave, and with public ones; a last row that no window saw stays empty."""
    pool, unpool = MAX[dims], {2: F.max_unpool2d, 3: F.max_unpool3d}[dims]
    x = grid(*SHAPES[dims])

    def there_and_back(a: Tensor) -> Tensor:
        values, indices = pool(a, 2, return_indices=True)
        result: Tensor = unpool(values * 2, indices, 2, output_size=a.shape[2:])
        return result

    matches(there_and_back, x, ulps=0, backward=False)
    values, indices = pool(x, 2, return_indices=True)
    matches(lambda a: unpool(a, indices, 2, output_size=x.shape[2:]), values, ulps=0, grad_ulps=0)
    values, indices = pool(x, 3, 1, return_indices=True)
    matches(lambda a: unpool(a, indices, 3, 1, output_size=x.shape[2:]), values, ulps=0, grad_ulps=0)


def test_indices_of_other_makes() -> None:
    """Backward with indices that carry no bits (copied, say) finds the winners once more; public ones are used."""
    x = grid(2, 3, 6, 6)
    y, indices = F.max_pool2d(x, 2, return_indices=True)
    secret_x, upstream = encml.share(x), grid(*y.shape, seed=5)
    _, secret_indices = F.max_pool2d(secret_x, 2, return_indices=True)
    backward = torch.ops.aten.max_pool2d_with_indices_backward
    geometry = ([2, 2], [], [0, 0], [1, 1], False)
    expected = backward(upstream, x, *geometry, indices)
    for case in (secret_indices, secret_indices.clone(), indices):
        near(backward(encml.share(upstream), secret_x, *geometry, case).reveal(), expected, 0)
    near(backward(upstream, secret_x, *geometry, secret_indices).reveal(), expected, 0)
    near(backward(encml.share(upstream), x, *geometry, indices).reveal(), expected, 0)


def test_under_checkpoint_and_no_grad() -> None:
    x = grid(2, 3, 6, 6)
    matches(
        lambda a: torch.utils.checkpoint.checkpoint(lambda b: F.max_pool2d(b, 3, 2, 1), a, use_reentrant=False),
        x, ulps=0, grad_ulps=0,
    )  # fmt: skip
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            for pool in (
                lambda a: F.max_pool2d(a, 2),
                lambda a: F.max_pool1d(a[0], 3),
                lambda a: F.avg_pool1d(a[0], 3),
            ):
                near(pool(encml.share(x)).reveal(), pool(x), 3)


def test_a_deferred_secret_is_worked_out_once(session: Session) -> None:
    made: list[int] = []

    def make() -> Secret:
        made.append(1)
        return secret(encml.share(grid(3)))

    deferred = Deferred(session, make)
    deferred.keep("name", 7)
    assert repr(deferred) == "Deferred()"
    assert deferred.fact("name") == 7
    assert not made
    assert torch.equal(deferred.payload, deferred.terms)
    assert deferred.shape == (3,)
    assert deferred.fact("name") == 7
    assert deferred.keep("other", 8).fact("other") == 8
    assert "replicated" in repr(deferred)
    assert made == [1]
    deferred.overwrite(secret(encml.share(grid(3, seed=1))))
    assert deferred.fact("name") is None


@pytest.mark.parametrize(
    "f",
    [
        lambda x: F.max_pool2d(x, 4, padding=3),
        lambda x: F.max_pool2d(x, 9),
        lambda x: F.adaptive_max_pool2d(x, (2, 2, 2)),
        lambda x: F.avg_pool3d(x, 9),
    ],
)
def test_errors_are_those_of_pytorch(f: Any) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)) as plain:
        f(grid(2, 3, 6, 6))
    with pytest.raises(type(plain.value)):
        f(encml.share(grid(2, 3, 6, 6)))


@pytest.mark.parametrize(
    ("f", "advice"),
    [
        (lambda x: F.max_unpool2d(*F.max_pool2d(x, 3, 2, return_indices=True), 3, 2), "ConvTranspose"),
        (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 3), "that size"),
        (lambda x: F.max_unpool1d(*F.max_pool1d(x[0], 3, return_indices=True), 3), "straight"),
        (lambda x: F.fractional_max_pool2d(x, 2, output_size=3), "use max_pool2d"),
        (lambda x: F.max_pool2d(x[..., :4, :4], 2, 1, 1, 5), "inf"),
    ],
)
def test_what_is_refused(f: Any, advice: str) -> None:
    with pytest.raises(UnsupportedOperation, match=advice):
        f(encml.share(grid(2, 3, 9, 9)))


# Real parties --------------------------------------------------------------------------------------------------------


def _work(parties: Parties | None) -> list[SharedTensor]:
    """One of each way in which a pool, a resampling or a convolution treats shares."""

    def own(values: Tensor, owner: int) -> SharedTensor:
        knows = parties is None or parties.plays(owner)
        return encml.share(values if knows else torch.zeros_like(values), owner=owner)

    x, weight = own(grid(2, 3, 6, 7), 0).requires_grad_(), own(grid(3, 2, 3, 3, seed=1), 1).requires_grad_()
    y = F.conv_transpose2d(x, weight, stride=2)
    values, indices = F.max_pool2d(y, 3, 2, 1, return_indices=True)
    results = [
        y, values, indices, F.adaptive_max_pool1d(x[0], 3), F.adaptive_avg_pool2d(x, (4, 3)), F.avg_pool1d(x[0], 3),
        F.interpolate(y, scale_factor=2, mode="bilinear"), F.pad(x, (1, 2, 0, 1), mode="reflect"), F.unfold(x, 2),
        F.pad(x, (1, 2, 0, 1), mode="circular"), F.conv1d(x[:, 0], weight[:, 0, :1].repeat(1, 6, 1), groups=1),
    ]  # fmt: skip
    torch.stack([result.double().sum() for result in results if result.dtype != torch.int64]).sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    return [*results, x.grad, weight.grad]


def test_three_parties_apart_hold_the_shares_of_one_process() -> None:
    def apart(parties: Parties) -> list[Tensor]:
        with Session(parties.net, seed=77):
            return [secret(x).settle().terms.clone() for x in _work(parties)]

    with Session(seed=77):
        together = [secret(x).settle().terms for x in _work(None)]
    results, _ = run_apart(apart, 77)
    for rank, found in enumerate(results):
        for i, (ours, expected) in enumerate(zip(found, together, strict=True)):
            assert torch.equal(ours, expected[[rank, (rank + 1) % 3]]), f"result {i} differs at party {rank}"
