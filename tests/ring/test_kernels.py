"""The ring's convolutions, poolings and look-ups against autograd in float64, exact for small integers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.errors import TypingError
from torch import Tensor

from encml.errors import InvalidTensor
from encml.ring.kernels import (
    adaptive_places,
    convolution,
    convolve,
    fold,
    geometry,
    input_gradient,
    look_up,
    matmul,
    products,
    put_back,
    sum_pool,
    sum_pool_gradient,
    threads,
    unfold,
    weight_gradient,
    window_places,
)

CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def small(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randint(-9, 10, tuple(shape), generator=torch.Generator().manual_seed(seed))


def large(shape: Sequence[int], seed: int) -> Tensor:
    """Any 64 bits, so that products and sums wrap around."""
    halves = torch.randint(0, 2**32, (2, *shape), generator=torch.Generator().manual_seed(seed))
    return (halves[0] << 32) | halves[1]


def wrap(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >> 63 else value


Case = tuple[tuple[int, int, int, int], Sequence[int], Sequence[int], Sequence[int], Sequence[int], Sequence[int]]

CONVOLUTIONS: list[Case] = [
    # (N, C, O, groups), size, kernel, stride, padding, dilation
    ((2, 3, 4, 1), (6, 7), (3, 3), (1, 1), (0, 0), (1, 1)),
    ((2, 3, 4, 1), (6, 7), (3, 2), (1, 1), (1, 1), (1, 1)),
    ((1, 2, 3, 1), (7, 8), (3, 3), (2, 3), (1, 0), (1, 1)),
    ((2, 4, 6, 2), (6, 6), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((2, 4, 4, 4), (5, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((2, 3, 6, 3), (5, 9), (3, 2), (2, 1), (2, 0), (1, 2)),
    ((1, 2, 2, 1), (9, 9), (3, 2), (2, 1), (2, 1), (2, 3)),
    ((2, 4, 2, 2), (8, 7), (2, 3), (3, 2), (0, 2), (2, 1)),
    ((1, 1, 1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    ((2, 1, 2, 1), (4, 4), (1, 1), (2, 2), (3, 3), (1, 1)),
    ((3, 4, 6, 2), (4, 5), (1, 1), (1, 1), (0, 0), (1, 1)),
    ((3, 2, 2, 1), (8, 8), (3, 3), (5, 5), (0, 0), (1, 1)),
    ((0, 2, 2, 1), (4, 4), (3, 3), (1, 1), (0, 0), (1, 1)),
    ((2, 3, 5, 1), (9,), (3,), (2,), (1,), (1,)),
    ((2, 4, 8, 4), (11,), (2,), (1,), (3,), (4,)),
    ((1, 2, 3, 1), (2000,), (2,), (1,), (1,), (1,)),
    ((2, 80, 70, 1), (4, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((1, 70, 140, 2), (6, 6), (2, 2), (2, 2), (0, 0), (1, 1)),
    ((2, 2, 3, 1), (4, 5, 6), (3, 2, 1), (1, 2, 2), (1, 0, 1), (1, 2, 1)),
    ((2, 2, 2, 2), (5, 4, 4), (2, 2, 3), (2, 1, 1), (1, 2, 1), (2, 1, 1)),
]
CONVOLUTION = pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)


def check(case: Case) -> None:
    (n, c, o, groups), size, kernel, stride, padding, dilation = case
    x, weight = small((n, c, *size), 1), small((o, c // groups, *kernel), 2)
    rx, rw = x.double().requires_grad_(), weight.double().requires_grad_()
    reference = CONV[len(size)](rx, rw, None, stride, padding, dilation, groups)
    assert torch.equal(convolution(x, weight, stride, padding, dilation, groups), reference.detach().long())

    gradient = small(reference.shape, 3)
    expected = torch.autograd.grad(reference, (rx, rw), gradient.double())
    to_x = input_gradient(gradient, weight, size, stride, padding, dilation, groups)
    to_weight = weight_gradient(x, gradient, kernel, stride, padding, dilation, groups)
    assert torch.equal(to_x, expected[0].long())
    assert torch.equal(to_weight, expected[1].long())


@CONVOLUTION
@pytest.mark.parametrize(("buffer", "weights", "turning"), [(1 << 15, 1 << 15, 0.75), (300, 20, 0), (1, 1, 9)])
def test_convolution_and_both_its_adjoints(
    case: Case, buffer: int, weights: int, turning: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where so little fits that images, places and channels are cut up, and with vectors always along lines, or
    always across images."""
    monkeypatch.setattr(geometry, "BUFFER", buffer)
    monkeypatch.setattr(geometry, "WEIGHTS", weights)
    monkeypatch.setattr(geometry, "TURNING", turning)
    geometry._layout.cache_clear()
    check(case)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_convolution_of_any_geometry(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims))

    kernel, stride, padding, dilation = each(1, 4), each(1, 3), each(0, 3), each(1, 3)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [data.draw(st.integers(n, n + 5)) for n in least]
    groups, inner, outputs = (data.draw(st.integers(1, 3)) for _ in range(3))
    channels = data.draw(st.integers(0, 3)), groups * inner, groups * outputs, groups
    check((channels, size, kernel, stride, padding, dilation))


@CONVOLUTION
def test_convolutions_of_strided_tensors(case: Case) -> None:
    """Payloads are often views: transposed, or channels last."""
    (n, c, o, groups), size, kernel, *steps = case
    x, weight = small((n, c, *size), 1), small((o, c // groups, *kernel), 2)
    arguments = (*steps, groups)
    gradient = small(convolution(x, weight, *arguments).shape, 3)
    vx, vw, vg = (t.transpose(0, -1).contiguous().transpose(0, -1) for t in (x, weight, gradient))
    assert torch.equal(convolution(vx, vw, *arguments), convolution(x, weight, *arguments))
    assert torch.equal(input_gradient(vg, vw, size, *arguments), input_gradient(gradient, weight, size, *arguments))
    assert torch.equal(weight_gradient(vx, vg, kernel, *arguments), weight_gradient(x, gradient, kernel, *arguments))


def test_convolutions_of_expanded_tensors() -> None:
    """One element in memory that is seen many times, as the gradient of a sum is."""
    steps = (1, 1), (1, 1), (1, 1), 1
    one = torch.full((1,), 3)
    x, weight, gradient = one.expand(2, 3, 6, 7), one.expand(4, 3, 3, 3), one.expand(2, 4, 6, 7)
    solid = [t.contiguous() for t in (x, weight, gradient)]
    assert torch.equal(convolution(x, weight, *steps), convolution(*solid[:2], *steps))
    assert torch.equal(
        input_gradient(gradient, weight, (6, 7), *steps), input_gradient(solid[2], solid[1], (6, 7), *steps)
    )
    assert torch.equal(
        weight_gradient(x, gradient, (3, 3), *steps), weight_gradient(solid[0], solid[2], (3, 3), *steps)
    )
    assert torch.equal(matmul(weight[0, 0], gradient[0, 0, :3]), torch.full((3, 7), 27))


def test_compiled_loops_take_adjacent_elements_only() -> None:
    spread = np.zeros(16, np.int64)[::2]
    with pytest.raises(TypingError, match="adjacent"):
        products.multiply(spread, (0, 4, 1), spread, (0, 4, 1), spread, (0, 4, 1), (0, 1), (0, 4), 2, 4)


def test_an_image_may_be_larger_than_what_windows_see() -> None:
    """A transposed convolution with output padding: nothing goes there."""
    gradient, weight = small((2, 3, 4), 1), small((3, 2, 1), 2)
    got = input_gradient(gradient, weight, (5,), (1,), (0,), (2,), 1)
    assert torch.equal(got, F.conv_transpose1d(gradient.double(), weight.double(), output_padding=1, dilation=2).long())
    x = small((2, 2, 5), 3)
    assert (weight_gradient(x, gradient, (1,), (1,), (0,), (2,), 1) * weight).sum() == (x * got).sum()


def test_convolution_wraps_around() -> None:
    x, weight = large((2, 2, 4, 4), 1), large((3, 2, 3, 2), 2)
    got = convolution(x, weight, (1, 1), (0, 0), (1, 1), 1)
    for b, o, i, j in itertools.product(range(2), range(3), range(2), range(3)):
        patch, row = x[b, :, i : i + 3, j : j + 2].reshape(-1).tolist(), weight[o].reshape(-1).tolist()
        assert got[b, o, i, j].item() == wrap(sum(p * k for p, k in zip(patch, row, strict=True)))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_adjoints_are_adjoint_modulo_2_64(groups: int) -> None:
    """<conv(x, w), g> = <x, to_x(g, w)> = <w, to_w(x, g)>, which is all that backward needs, also wrapped around."""
    x, weight = large((2, 4, 7, 6), 1), large((8, 4 // groups, 3, 2), 2)
    steps = (2, 1), (1, 1), (1, 2), groups
    y = convolution(x, weight, *steps)
    gradient = large(y.shape, 3)
    inner = (y * gradient).sum()
    assert inner == (x * input_gradient(gradient, weight, (7, 6), *steps)).sum()
    assert inner == (weight * weight_gradient(x, gradient, (3, 2), *steps)).sum()


@pytest.mark.parametrize("turning", [0, 9])
def test_memory_does_not_grow_with_the_window(turning: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches of 7 x 7 x 7 places would be 343 times the image; buffers hold a slab of a channel at least, and else no
    more than they may."""
    sizes: list[int] = []
    take = convolve._Buffers.take
    monkeypatch.setattr(geometry, "TURNING", turning)
    monkeypatch.setattr(convolve._Buffers, "take", lambda self, name, n: sizes.append(n) or take(self, name, n))
    x, weight = small((1, 2, 24, 24, 24), 1), small((3, 2, 7, 7, 7), 2)
    steps = (1, 1, 1), (3, 3, 3), (1, 1, 1), 1
    gradient = convolution(x, weight, *steps)
    input_gradient(gradient, weight, (24, 24, 24), *steps)
    weight_gradient(x, gradient, (7, 7, 7), *steps)
    assert max(sizes) <= 2 * geometry.BUFFER < 343 * x.numel() / 10


@CONVOLUTION
def test_what_is_there_is_added_to(case: Case) -> None:
    (n, c, o, groups), size, kernel, *steps = case
    x, weight = small((n, c, *size), 1), small((o, c // groups, *kernel), 2)
    y = convolution(x, weight, *steps, groups)
    for f, inputs in (
        (partial(convolution), (x, weight)),
        (partial(input_gradient, size=size), (y, weight)),
        (partial(weight_gradient, size=kernel), (x, y)),
    ):
        arguments = dict(zip(("stride", "padding", "dilation"), steps, strict=True)) | {"groups": groups}
        once = f(*inputs, **arguments)  # type: ignore[operator]
        before = large(once.shape, 4)
        total = before.clone()
        assert f(*inputs, **arguments, total=total) is total  # type: ignore[operator]
        assert torch.equal(total, before + once)


def test_several_threads_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for case in CONVOLUTIONS:
        check(case)
    for m, k, n in ((3, 70, 131), (5, 9, 70), (70, 9, 5)):
        x, y = large((4, m, k), 1), large((4, k, n), 2)
        expected = (x[..., None] * y[:, None]).sum(2)
        assert torch.equal(matmul(x, y), expected)
        assert torch.equal(matmul(x[1], y[1].t().contiguous().t()), expected[1])


def test_parts_cover_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for count, step, work in ((0, 8, 10**9), (1, 8, 10**9), (25, 8, 10**9), (24, 1, 10**9), (100, 32, 5)):
        seen: list[tuple[int, int]] = []
        threads.in_parts(count, step, work, lambda start, stop, seen=seen: seen.append((start, stop)))  # type: ignore[misc]
        seen.sort()
        assert [i for start, stop in seen for i in range(start, stop)] == list(range(count))
        assert all(start % step == 0 for start, _ in seen)
        assert len(seen) == (1 if work == 5 or count < 2 else 3)


def test_errors_of_threads_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def job(start: int, stop: int) -> None:
        if start:
            raise InvalidTensor("from the second part")

    with pytest.raises(InvalidTensor, match="second part"):
        threads.in_parts(2, 1, 10**9, job)


POOLINGS = [
    # size, kernel, stride, padding, ceil_mode
    ((6, 6), (2, 2), (2, 2), (0, 0), False),
    ((7, 5), (2, 2), (2, 2), (0, 0), False),
    ((7, 5), (2, 2), (2, 2), (0, 0), True),
    ((7, 8), (3, 2), (1, 2), (1, 1), False),
    ((7, 8), (3, 3), (2, 2), (1, 1), True),
    ((5, 5), (5, 5), (5, 5), (0, 0), False),
    ((9, 9), (2, 3), (4, 5), (1, 1), True),
    ((5, 4, 6), (2, 3, 2), (2, 1, 2), (1, 1, 0), True),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "ceil"), POOLINGS, ids=str)
@pytest.mark.parametrize("lead", [(), (2,), (0, 3), (2, 3)])
def test_sum_pooling_and_its_adjoint(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil: bool,
    lead: tuple[int, ...],
) -> None:
    x, pool = small((*lead, *size), 1), (F.avg_pool2d if len(size) == 2 else F.avg_pool3d)
    flat = x.double().reshape(-1, 1, *size).requires_grad_()
    reference = pool(flat, kernel, stride, padding, ceil, divisor_override=1)
    output = reference.shape[2:]
    got = sum_pool(x, kernel, stride, padding, output)
    assert torch.equal(got, reference.detach().long().view(*lead, *output))

    gradient = small((*lead, *output), 2)
    (expected,) = torch.autograd.grad(reference, flat, gradient.double().view(reference.shape))
    assert torch.equal(sum_pool_gradient(gradient, size, kernel, stride, padding), expected.long().view(x.shape))
    turned = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(sum_pool(turned, kernel, stride, padding, output), got)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"),
    [
        ((6, 7), (2, 3), (1, 2), (0, 1), (2, 1)),
        ((5, 4), (1, 1), (3, 2), (0, 0), (1, 1)),
        ((8, 6), (3, 2), (2, 1), (2, 0), (1, 3)),
    ],
)
def test_unfold_and_fold(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> None:
    x, steps = small((2, 3, *size), 1), (kernel, dilation, padding, stride)
    columns = F.unfold(x.double(), *steps)
    output = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, d, p, s in zip(size, kernel, dilation, padding, stride, strict=True)
    ]
    got = unfold(x, kernel, stride, padding, dilation, output)
    assert torch.equal(got, columns.long().view(2, 3, -1, *output))
    back = fold(got, size, kernel, stride, padding, dilation)
    assert torch.equal(back, F.fold(columns, size, *steps).long())


def test_look_ups_and_their_adjoint() -> None:
    x = large((2, 3, 5, 4), 1)
    places = [torch.tensor([[0, 1], [4, 4], [2, 0]]), torch.tensor([[3], [0]])]
    got = look_up(x, places)
    assert got.shape == (2, 3, 3, 2, 2, 1)
    for q, r, t in itertools.product(range(3), range(2), range(2)):
        assert torch.equal(got[:, :, q, r, t, 0], x[:, :, places[0][q, t], places[1][r, 0]])
    gradient = large(got.shape, 2)
    assert (got * gradient).sum() == (x * put_back(gradient, places, (5, 4))).sum()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.data())
def test_window_places(size: int, kernel: int, stride: int, dilation: int, data: st.DataObject) -> None:
    """The largest that each window sees is the pool's; every place lies in its window."""
    padding = data.draw(st.integers(0, kernel // 2))
    reach = dilation * (kernel - 1) + 1
    if size + 2 * padding < reach:
        return
    output = (size + 2 * padding - reach) // stride + 1
    x = small((1, 1, size), 1)
    expected = F.max_pool1d(x.double(), kernel, stride, padding, dilation)
    try:
        table = window_places(size, kernel, stride, padding, dilation, output)
    except ValueError:
        assert torch.isinf(expected).any()
        return
    assert torch.equal(look_up(x, [table]).amax(-1), expected.long())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12))
def test_adaptive_places(size: int, output: int) -> None:
    x = small((1, 1, size), 1)
    table, real = adaptive_places(size, output)
    means = (look_up(x, [table]) * real).sum(-1) / real.sum(-1)
    torch.testing.assert_close(means.double(), F.adaptive_avg_pool1d(x.double(), output), rtol=1e-6, atol=1e-6)
    assert torch.equal(look_up(x, [table]).amax(-1), F.adaptive_max_pool1d(x.double(), output).long())


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 5), st.integers(0, 40), st.integers(0, 40), st.booleans(), st.booleans())
def test_matrix_products(m: int, k: int, n: int, left: bool, right: bool) -> None:
    """Whatever is transposed in memory; wrapped around, by the definition."""
    x = large((k, m), 1).t() if left else large((m, k), 1)
    y = large((n, k), 2).t() if right else large((k, n), 2)
    expected = (x[:, :, None] * y[None]).sum(1)
    assert torch.equal(matmul(x, y), expected)
    if n:
        assert torch.equal(matmul(x, y[:, 0]), expected[:, 0])
        if m:
            assert torch.equal(matmul(x[0], y), expected[0])
            assert torch.equal(matmul(x[0], y[:, 0]), expected[0, 0])
        assert torch.equal(matmul(x[None].expand(3, m, k), y), expected.expand(3, m, n))
        assert torch.equal(matmul(x, y[None, None].expand(2, 3, k, n)), expected.expand(2, 3, m, n))
        assert torch.equal(matmul(x.expand(3, m, k), y.expand(3, k, n)), expected.expand(3, m, n))
    total = large((m, n), 3)
    before = total.clone()
    matmul.onto(total, x, y)
    assert torch.equal(total, before + expected)


@pytest.mark.parametrize(("m", "k", "n"), [(3, 2100, 131), (1, 1025, 65), (64, 30, 10), (65, 67, 12)])
def test_large_matrix_products(m: int, k: int, n: int) -> None:
    x, y = large((m, k), 1), large((n, k), 2)
    expected = torch.stack([(row * y).sum(1) for row in x])
    assert torch.equal(matmul(x, y.t()), expected)
    assert torch.equal(matmul(x, y.t().contiguous()), expected)
    assert torch.equal(matmul(x[:, ::2], y[:, ::2].t()), torch.stack([(row * y)[:, ::2].sum(1) for row in x]))


def test_matrix_products_of_unfit_shapes() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        matmul(small((2, 3), 1), small((4, 5), 2))
