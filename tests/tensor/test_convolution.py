"""Convolutions, poolings and ReLU, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ULP, grid, matches, near
from torch import nn

import encml
from encml import Session, UnsupportedOperation

PUBLIC = pytest.mark.parametrize("public", [(), (0,), (1,), (2,), (1, 2), (0, 2)], ids=str)


@PUBLIC
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [
        (1, 0, 1, 1),
        (2, 1, 1, 1),
        ((2, 1), (0, 2), 1, 1),
        (1, 1, 2, 1),
        (2, 2, (2, 1), 2),
        (3, 0, 1, 1),
        (1, "same", 1, 1),
        (1, "same", (2, 1), 2),
        (1, "valid", 1, 4),
    ],
)
def test_conv2d(public: tuple[int, ...], stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    """However large the kernel, one truncation; the gradients likewise."""
    width = 3 if padding == "same" else 2
    x, weight, bias = grid(2, 4, 7, 6, seed=1), grid(8, 4 // groups, 3, width, seed=2), grid(8, seed=3)
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    matches(lambda a, w, b: F.conv2d(a, w, b, **settings), x, weight, bias, public=public)
    if 2 not in public:
        matches(lambda a, w: F.conv2d(a, w, **settings), x, weight, public=public)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_conv2d_of_any_geometry(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    kernel, stride, padding, dilation = pair(1, 3), pair(1, 3), pair(0, 2), pair(1, 2)
    least = [max(1, dilation[k] * (kernel[k] - 1) + 1 - 2 * padding[k]) for k in (0, 1)]
    size = [data.draw(st.integers(least[k], least[k] + 4)) for k in (0, 1)]
    groups = data.draw(st.sampled_from([1, 2]))
    batch = data.draw(st.integers(0, 2))
    x, weight = grid(batch, 2 * groups, *size, seed=1), grid(groups, 2, *kernel, seed=2)
    with Session(seed=2):
        matches(lambda a, w: F.conv2d(a, w, None, stride, padding, dilation, groups), x, weight)


def test_conv2d_of_views_and_without_a_batch() -> None:
    x, weight = grid(4, 7, 6, seed=1), grid(5, 4, 3, 3, seed=2)
    matches(F.conv2d, x, weight)
    matches(lambda a, w: F.conv2d(a.permute(1, 2, 0)[..., :4].permute(2, 0, 1), w), x, weight)
    matches(lambda a, w: F.conv2d(a[None, :, ::2], w.flip(-1)), x, weight)
    matches(lambda a, w: F.conv2d(a[None, :, :1].expand(2, 4, 5, 6), w), x, weight)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: F.conv1d(x[0], torch.ones(1, 4, 2)),
        lambda x: F.conv3d(x[None], torch.ones(1, 2, 1, 1, 1)),
        lambda x: F.conv_transpose2d(x, torch.ones(4, 1, 2, 2)),
    ],
)
def test_other_convolutions_are_refused(f: Any) -> None:
    with pytest.raises(UnsupportedOperation, match="conv2d"):
        f(encml.share(grid(2, 4, 5, 5).float()))


POOLS = [
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


def test_pooling_by_powers_of_two_is_one_truncation() -> None:
    x, weight = grid(2, 2, 8, 8, seed=1), grid(3, 2, 1, 1, seed=2)
    matches(lambda a, w: F.avg_pool2d(F.conv2d(a, w), 2), x, weight)
    matches(lambda a: F.avg_pool2d(a, 2), x)


@pytest.mark.parametrize("size", [1, (1, 1)])
def test_adaptive_pooling_to_one(size: Any) -> None:
    matches(nn.AdaptiveAvgPool2d(size), grid(2, 3, 4, 5), ulps=3, grad_ulps=3)
    matches(lambda a: F.adaptive_avg_pool2d(a, size), grid(3, 4, 4))
    with pytest.raises(UnsupportedOperation, match="avg_pool2d"):
        nn.AdaptiveAvgPool2d(2)(encml.share(grid(2, 3, 4, 5)))


# ReLU ----------------------------------------------------------------------------------------------------------------

RELUS = [
    F.relu,
    torch.relu,
    lambda x: x.relu(),
    nn.ReLU(),
    lambda x: F.relu(input=x),
    lambda x: F.relu(x.clone(), inplace=True),
    lambda x: nn.ReLU(inplace=True)(x.clone()),
    lambda x: x.clone().relu_(),
    lambda x: torch.relu_(x.clone()),
]
EDGES = torch.tensor([0.0, ULP, -ULP, 1.0, -1.0, 2.0**29, -(2.0**29), 2.0**30 - 1, 1 - 2.0**30], dtype=torch.float64)


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 2), (4, 33)])
def test_relu_is_exact(relu: Any, shape: tuple[int, ...]) -> None:
    """Also its gradient: the mask is a whole number, and at 0 the gradient is 0 as PyTorch's."""
    matches(relu, grid(*shape), ulps=0, grad_ulps=0)


@pytest.mark.parametrize("relu", RELUS)
def test_relu_at_the_edges(relu: Any) -> None:
    matches(relu, EDGES, ulps=0, grad_ulps=0)
    with torch.no_grad():
        matches(relu, EDGES, ulps=0, backward=False)
    with torch.inference_mode():
        near(relu(encml.share(EDGES)).reveal(), EDGES.relu(), 0)


def test_relu_of_views() -> None:
    for layout in (lambda x: x.t(), lambda x: x[:, ::2], lambda x: x[:1].expand(3, 4), lambda x: x[0, 1]):
        matches(lambda x, layout=layout: layout(x).relu(), grid(4, 4), ulps=0, grad_ulps=0)
        matches(lambda x, layout=layout: layout(x * x).relu(), grid(4, 4), grad_ulps=2)


def test_relu_keeps_its_bits_for_backward(session: Session) -> None:
    """Backward compares nothing again: it selects, in two rounds and 32 bytes an element."""
    x = encml.share(grid(64)).requires_grad_()
    y = x.relu()
    before = session.ledger.total
    y.backward(encml.share(grid(64)))
    near(x.grad.reveal(), grid(64) * (grid(64) > 0), 0)
    spent = session.ledger.total - before
    assert spent.rounds == 4  # share, select, reveal
    assert session.ledger.costs["threshold_backward"].bytes == 32 * 64
    assert session.ledger.costs["relu"].rounds == 10


def test_relu_in_place_of_what_backward_needs() -> None:
    """The result is what is kept, as in PyTorch, so relu_ of a product's result is fine and of its factor is not."""
    matches(lambda x: (x * 3).relu_().sum(), grid(5), ulps=0, grad_ulps=0)
    x = encml.share(grid(5)).requires_grad_()
    y = x * 2
    z = (y * y).sum()
    y.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()
    with pytest.raises(RuntimeError, match="leaf"):
        x.relu_()
