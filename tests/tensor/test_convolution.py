"""Convolutions in one to three dimensions, transposed ones too, and ReLU: values and gradients."""

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
from encml import Session
from encml.errors import InvalidTensor
from encml.tensor.secret import settle_all
from encml.tensor.shared import secret

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


CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_convolutions_of_any_geometry(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims))

    kernel, stride, padding, dilation = each(1, 3), each(1, 3), each(0, 2), each(1, 2)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [data.draw(st.integers(n, n + 3)) for n in least]
    groups, inner, outputs = (data.draw(st.integers(1, 2)) for _ in range(3))
    x = grid(data.draw(st.integers(0, 2)), inner * groups, *size, seed=1)
    weight = grid(outputs * groups, inner, *kernel, seed=2)
    with Session(seed=2):
        matches(lambda a, w: CONV[dims](a, w, None, stride, padding, dilation, groups), x, weight)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_transposed_convolutions_of_any_geometry(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims))

    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    extra = [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding = [data.draw(st.integers(0, r)) for r in reach]
    # Something must be left of the output.
    size = [
        max(1, -(-(2 * p - r - e) // s) + 1) + data.draw(st.integers(0, 2))
        for p, r, e, s in zip(padding, reach, extra, stride, strict=True)
    ]
    groups, inner, outputs = (data.draw(st.integers(1, 2)) for _ in range(3))
    x = grid(data.draw(st.integers(1, 2)), inner * groups, *size, seed=1)
    weight, bias = grid(inner * groups, outputs, *kernel, seed=2), grid(outputs * groups, seed=3)
    with Session(seed=2):
        matches(lambda a, w, b: TRANSPOSED[dims](a, w, b, stride, padding, extra, groups, dilation), x, weight, bias)


@PUBLIC
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolutions_with_public_operands(dims: int, public: tuple[int, ...]) -> None:
    x, weight, bias = grid(2, 4, *(4, 3, 2)[:dims], seed=1), grid(4, 3, *(3, 2, 2)[:dims], seed=2), grid(6, seed=3)
    matches(lambda a, w, b: TRANSPOSED[dims](a, w, b, 2, 1, 1, 2), x, weight, bias, public=public)


@pytest.mark.parametrize("padding", ["same", "valid", 1])
@pytest.mark.parametrize("dims", [1, 3])
def test_conv1d_and_conv3d_and_their_bias(dims: int, padding: Any) -> None:
    x, weight, bias = grid(2, 4, *(6, 5, 4)[:dims], seed=1), grid(6, 2, *(3, 3, 3)[:dims], seed=2), grid(6, seed=3)
    matches(lambda a, w, b: CONV[dims](a, w, b, 1, padding, 1, 2), x, weight, bias)
    matches(lambda a, w, b: CONV[dims](a[0], w, b, 1, padding, 1, 2), x, weight, bias)


LAYERS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (2, 4, 6, 5)),
    (nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), (2, 3, 5, 5)),
    (nn.Conv2d(3, 2, 3, padding=1, padding_mode="replicate"), (2, 3, 5, 5)),
    (nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular"), (2, 3, 5, 5)),
    (nn.Conv3d(2, 3, 2), (2, 2, 4, 3, 3)),
    (nn.ConvTranspose1d(4, 3, 4, stride=2), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1), (2, 4, 4, 4)),
    (nn.ConvTranspose3d(2, 2, 2, stride=2), (1, 2, 3, 3, 2)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Weights are on the grid, so that sharing rounds nothing."""
    parameters = dict(layer.named_parameters())
    weights = [grid(*p.shape, seed=5 + i, low=-1, high=1) for i, p in enumerate(parameters.values())]

    def call(x: Any, *values: Any) -> Any:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    matches(call, grid(*shape, seed=1), *weights)


def test_costs(session: Session) -> None:
    """One ring element an output, whatever the window, and rescaled once; both gradients likewise."""
    x, weight = encml.share(grid(2, 3, 6, 6)).requires_grad_(), encml.share(grid(4, 3, 3, 3)).requires_grad_()
    before = session.ledger.total
    y = F.conv2d(x, weight)
    assert (session.ledger.total - before).rounds == 0
    secret(y).settle()
    spent, n = session.ledger.total - before, y.numel()
    assert (spent.rounds, spent.bytes) == (3, n * (8 + 2 + 16) + 2 * -(-n // 8))
    upstream = encml.share(grid(*y.shape))
    before = session.ledger.total
    y.backward(upstream)
    assert session.ledger.total.rounds == before.rounds
    settle_all(secret(x.grad), secret(weight.grad))
    spent, sizes = session.ledger.total - before, (x.numel(), weight.numel())
    assert (spent.rounds, spent.bytes) == (3, sum(n * (8 + 2 + 16) + 2 * -(-n // 8) for n in sizes))


def test_conv2d_of_views_and_without_a_batch() -> None:
    x, weight = grid(4, 7, 6, seed=1), grid(5, 4, 3, 3, seed=2)
    matches(F.conv2d, x, weight)
    matches(lambda a, w: F.conv2d(a.permute(1, 2, 0)[..., :4].permute(2, 0, 1), w), x, weight)
    matches(lambda a, w: F.conv2d(a[None, :, ::2], w.flip(-1)), x, weight)
    matches(lambda a, w: F.conv2d(a[None, :, :1].expand(2, 4, 5, 6), w), x, weight)
    matches(lambda a, w: F.conv_transpose2d(a, w.transpose(0, 1)), x, weight)


UNFIT: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 3, 5, 5), (4, 5, 3, 3), {}),
    ((1, 3, 5, 5), (4, 3, 7, 7), {}),
    ((1, 4, 5, 5), (3, 2, 3, 3), {"groups": 2}),
    ((1, 3, 5, 5), (4, 3, 3, 3), {"stride": 0}),
    ((1, 3, 5, 5), (4, 3, 3, 3), {"padding": -1}),
    ((1, 3, 5, 5), (4, 3, 3, 3), {"dilation": 0}),
    ((1, 3, 5, 5), (4, 3, 3, 3), {"bias": torch.ones(5)}),
    ((1, 3, 0, 5), (4, 3, 3, 3), {}),
    ((1, 3, 5, 5), (0, 3, 3, 3), {}),
    ((3, 5, 5), (4, 3, 3), {}),
]


@pytest.mark.parametrize(("shape", "kernel", "settings"), UNFIT, ids=str)
@pytest.mark.parametrize("both", [False, True])
def test_shapes_that_do_not_fit_are_refused(shape: Any, kernel: Any, settings: dict[str, Any], both: bool) -> None:
    """PyTorch checks them below where secrets branch off; the compiled loops would read past their arrays."""
    x, weight = encml.share(torch.ones(shape)), torch.ones(kernel)
    with pytest.raises(RuntimeError):
        F.conv2d(torch.ones(shape), weight, **settings)
    with pytest.raises((InvalidTensor, IndexError)):
        F.conv2d(x, encml.share(weight) if both else weight, **settings)


def test_unfit_shapes_of_a_transposed_convolution_are_refused() -> None:
    x = encml.share(torch.ones(1, 3, 5, 5))
    for weight, options in [((4, 2, 3, 3), {}), ((3, 2, 3, 3), {"padding": 9}), ((3, 2, 3, 3), {"groups": 2})]:
        with pytest.raises(InvalidTensor):
            F.conv_transpose2d(x, torch.ones(weight), **options)


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
