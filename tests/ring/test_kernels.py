"""The ring's convolutions and poolings against autograd in float64, exact for small integers, and plain loops."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encml.ring.kernels import (
    Pair,
    conv2d,
    conv2d_input_gradient,
    conv2d_weight_gradient,
    sum_pool2d,
    sum_pool2d_gradient,
)


def small(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed))


def large(shape: tuple[int, ...], seed: int) -> Tensor:
    """Any 64 bits, so that products and sums wrap around."""
    halves = torch.randint(0, 2**32, (2, *shape), generator=torch.Generator().manual_seed(seed))
    return (halves[0] << 32) | halves[1]


def wrap(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >> 63 else value


CONVOLUTIONS = [
    # (N, C, O, groups), (H, W), (h, w), stride, padding, dilation
    ((2, 3, 4, 1), (6, 7), (3, 3), (1, 1), (0, 0), (1, 1)),
    ((2, 3, 4, 1), (6, 7), (3, 2), (1, 1), (1, 1), (1, 1)),
    ((1, 2, 3, 1), (7, 8), (3, 3), (2, 3), (1, 0), (1, 1)),
    ((2, 4, 6, 2), (6, 6), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((2, 4, 4, 4), (5, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((1, 2, 2, 1), (9, 9), (3, 2), (2, 1), (2, 1), (2, 3)),
    ((2, 4, 2, 2), (8, 7), (2, 3), (3, 2), (0, 2), (2, 1)),
    ((1, 1, 1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    ((2, 1, 2, 1), (4, 4), (1, 1), (2, 2), (3, 3), (1, 1)),
    ((3, 2, 2, 1), (8, 8), (3, 3), (5, 5), (0, 0), (1, 1)),
    ((0, 2, 2, 1), (4, 4), (3, 3), (1, 1), (0, 0), (1, 1)),
]
CONVOLUTION = pytest.mark.parametrize(
    ("channels", "image", "kernel", "stride", "padding", "dilation"), CONVOLUTIONS, ids=range(len(CONVOLUTIONS))
)


@CONVOLUTION
def test_convolution_and_both_its_adjoints(
    channels: tuple[int, int, int, int], image: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    n, c, o, groups = channels
    x, weight = small((n, c, *image), 1), small((o, c // groups, *kernel), 2)
    rx, rw = x.double().requires_grad_(), weight.double().requires_grad_()
    reference = F.conv2d(rx, rw, None, stride, padding, dilation, groups)
    assert torch.equal(conv2d(x, weight, stride, padding, dilation, groups), reference.detach().long())

    gradient = small(tuple(reference.shape), 3)
    expected = torch.autograd.grad(reference, (rx, rw), gradient.double())
    to_x = conv2d_input_gradient(gradient, weight, image, stride, padding, dilation, groups)
    to_weight = conv2d_weight_gradient(x, gradient, kernel, stride, padding, dilation, groups)
    assert torch.equal(to_x, expected[0].long())
    assert torch.equal(to_weight, expected[1].long())


@CONVOLUTION
def test_convolutions_of_strided_tensors(
    channels: tuple[int, int, int, int], image: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    """Payloads are often views: transposed, or channels last."""
    n, c, o, groups = channels
    x, weight = small((n, c, *image), 1), small((o, c // groups, *kernel), 2)
    settings = stride, padding, dilation, groups
    gradient = small(tuple(conv2d(x, weight, *settings).shape), 3)
    views = [t.permute(1, 3, 2, 0).contiguous().permute(3, 0, 2, 1) for t in (x, weight, gradient)]
    vx, vw, vg = views
    assert torch.equal(conv2d(vx, vw, *settings), conv2d(x, weight, *settings))
    assert torch.equal(
        conv2d_input_gradient(vg, vw, image, *settings), conv2d_input_gradient(gradient, weight, image, *settings)
    )
    assert torch.equal(
        conv2d_weight_gradient(vx, vg, kernel, *settings), conv2d_weight_gradient(x, gradient, kernel, *settings)
    )


def test_convolution_wraps_around() -> None:
    x, weight = large((2, 2, 4, 4), 1), large((3, 2, 3, 2), 2)
    got = conv2d(x, weight, (1, 1), (0, 0), (1, 1), 1)
    for b, o, i, j in itertools.product(range(2), range(3), range(2), range(3)):
        patch, row = x[b, :, i : i + 3, j : j + 2].reshape(-1).tolist(), weight[o].reshape(-1).tolist()
        assert got[b, o, i, j].item() == wrap(sum(p * k for p, k in zip(patch, row, strict=True)))


def test_adjoints_are_adjoint_modulo_2_64() -> None:
    """<conv(x, w), g> = <x, to_x(g, w)> = <w, to_w(x, g)>, which is all that backward needs, also wrapped around."""
    x, weight = large((2, 4, 7, 6), 1), large((6, 2, 3, 2), 2)
    settings = (2, 1), (1, 1), (1, 2), 2
    y = conv2d(x, weight, *settings)
    gradient = large(tuple(y.shape), 3)
    inner = (y * gradient).sum()
    assert inner == (x * conv2d_input_gradient(gradient, weight, (7, 6), *settings)).sum()
    assert inner == (weight * conv2d_weight_gradient(x, gradient, (3, 2), *settings)).sum()


POOLINGS = [
    # (H, W), kernel, stride, padding, ceil_mode
    ((6, 6), (2, 2), (2, 2), (0, 0), False),
    ((7, 5), (2, 2), (2, 2), (0, 0), False),
    ((7, 5), (2, 2), (2, 2), (0, 0), True),
    ((7, 8), (3, 2), (1, 2), (1, 1), False),
    ((7, 8), (3, 3), (2, 2), (1, 1), True),
    ((5, 5), (5, 5), (5, 5), (0, 0), False),
    ((9, 9), (2, 3), (4, 5), (1, 1), True),
]


@pytest.mark.parametrize(("image", "kernel", "stride", "padding", "ceil"), POOLINGS, ids=range(len(POOLINGS)))
@pytest.mark.parametrize("lead", [(), (2,), (0, 3), (2, 3)])
def test_sum_pooling_and_its_adjoint(
    image: Pair, kernel: Pair, stride: Pair, padding: Pair, ceil: bool, lead: tuple[int, ...]
) -> None:
    x = small((*lead, *image), 1)
    flat = x.double().reshape(-1, 1, *image).requires_grad_()
    reference = F.avg_pool2d(flat, kernel, stride, padding, ceil, divisor_override=1)
    output = (reference.shape[-2], reference.shape[-1])
    got = sum_pool2d(x, kernel, stride, padding, output)
    assert torch.equal(got, reference.detach().long().view(*lead, *output))

    gradient = small((*lead, *output), 2)
    (expected,) = torch.autograd.grad(reference, flat, gradient.double().view(reference.shape))
    assert torch.equal(sum_pool2d_gradient(gradient, image, kernel, stride, padding), expected.long().view(x.shape))
    turned = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(sum_pool2d(turned, kernel, stride, padding, output), got)
