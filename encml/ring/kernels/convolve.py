"""Convolutions over Z_2^64 in any one to three dimensions, and both their adjoints.

No patches are laid out: a tile of the result reads the image itself, each tap of the window at its own offset from the
same places, see ``encml.ring.kernels.geometry``. So nothing grows with the size of the window. Depthwise convolutions
have loops of their own.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from encml.ring.kernels import anywhere, loops
from encml.ring.kernels.anywhere import elsewhere
from encml.ring.kernels.geometry import Block, Layout, Plan, Sizes, check_steps
from encml.ring.kernels.loops import Array, flat
from encml.ring.kernels.threads import in_parts
from encml.ring.kernels.tiles import LANES


def convolution(
    x: Tensor,
    weight: Tensor,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
    total: Tensor | None = None,
) -> Tensor:
    """Cross-correlation, x (N, C, *size) with weight (O, C / groups, *kernel), as torch.nn.functional.conv1d to 3d.

    total: a contiguous tensor that the result is added to and that is returned then, here and in both adjoints. Raises
    InvalidTensor, as they do, if the shapes do not fit together.
    """
    check_steps(x.ndim - 2, weight.ndim - 2, stride, padding, dilation)
    output = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    shape = (len(x), len(weight), *output)
    plan = Plan.of(x.shape, weight.shape, shape, stride, padding, dilation, groups)
    if elsewhere(x, weight):
        made = anywhere.convolution(x, weight, output, stride, padding, dilation, groups)
        return made if total is None else total.add_(made)
    images, add = x.contiguous(), total is not None
    if plan.depthwise:
        result = x.new_zeros(shape) if total is None else total
        plan.depthwise_into(0, images, weight, result)
        return result
    result = x.new_empty(shape) if total is None else total
    seen, weights, out = flat(images), flat(weight), result.view(-1).numpy()

    def some(start: int, stop: int) -> None:
        buffers = _Buffers()
        for block in plan.blocks(start, stop):
            for group in range(groups):
                first = plan.first_result(block, group)
                for channel, channels in plan.chunks():
                    tables = plan.layout(block, channels)
                    buffer = buffers.take("images", tables.size)
                    plan.pack(seen, block, group, channel, channels, buffer, False)
                    factor = weights, plan.first_weight(group, channel), plan.inner * plan.taps, plan.outputs
                    if tables.lane == 1:
                        to = out, first, tables.targets, tables.lanes, plan.each, add or channel > 0
                    else:
                        vectors = buffers.take("vectors", plan.outputs * len(tables.slots) * LANES)
                        full = np.full_like(tables.lanes, LANES)
                        to = vectors, 0, tables.slots, full, len(tables.slots) * LANES, channel > 0
                    loops.windows(*factor, buffer, tables.places, tables.taps, *to)
                if tables.lane != 1:
                    loops.spread(
                        vectors, out, first, plan.each, plan.outputs, tables.targets, tables.lane, tables.lanes, add
                    )

    in_parts(plan.images, plan.lanes, plan.work, some)
    return result


def input_gradient(
    gradient: Tensor,
    weight: Tensor,
    size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
    total: Tensor | None = None,
) -> Tensor:
    """The adjoint of ``convolution`` in x: gradient (N, O, *output) to (N, C, *size); a transposed convolution."""
    shape = len(gradient), weight.shape[1] * groups, *size
    plan = Plan.of(shape, weight.shape, gradient.shape, stride, padding, dilation, groups)
    if elsewhere(gradient, weight):
        made = anywhere.input_gradient(gradient, weight, size, stride, padding, dilation, groups)
        return made if total is None else total.add_(made)
    if plan.pointwise:
        turned = weight.reshape(groups, plan.outputs, plan.inner).transpose(1, 2)
        turned = turned.reshape(-1, plan.outputs, *weight.shape[2:])
        return convolution(gradient, turned, stride, padding, dilation, groups, total)
    result = gradient.new_zeros(shape) if total is None else total
    if plan.depthwise:
        plan.depthwise_into(1, result, weight, gradient)
        return result
    upstream, weights, out = flat(gradient), flat(weight), result.view(-1).numpy()

    def some(start: int, stop: int) -> None:
        buffers = _Buffers()
        for block in plan.blocks(start, stop):
            for group in range(groups):
                for channel, channels in plan.chunks():
                    tables = plan.layout(block, channels)
                    vectors, first, row, places = _upstream(plan, block, group, tables, upstream, buffers)
                    buffer = buffers.take("images", tables.size)
                    buffer.fill(0)
                    loops.windows_back(
                        weights, plan.first_weight(group, channel), plan.taps, channels, plan.inner * plan.taps,
                        plan.outputs, vectors, first, row, places, tables.lanes, tables.tap, buffer, tables.places,
                        tables.step,
                    )  # fmt: skip
                    plan.pack(out, block, group, channel, channels, buffer, True)

    in_parts(plan.images, plan.lanes, plan.work, some)
    return result


def weight_gradient(
    x: Tensor,
    gradient: Tensor,
    size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
    total: Tensor | None = None,
) -> Tensor:
    """The adjoint of ``convolution`` in the weight: x (N, C, *), gradient (N, O, *output) to (O, C / groups, *size)."""
    shape = gradient.shape[1], x.shape[1] // groups, *size
    plan = Plan.of(x.shape, shape, gradient.shape, stride, padding, dilation, groups)
    if elsewhere(x, gradient):
        made = anywhere.weight_gradient(x, gradient, size, stride, padding, dilation, groups)
        return made if total is None else total.add_(made)
    result = x.new_zeros(shape) if total is None else total
    images = x.contiguous()
    if plan.depthwise:
        plan.depthwise_into(2, images, result, gradient)
        return result
    seen, upstream = flat(images), flat(gradient)
    sums: list[Tensor] = []

    def some(start: int, stop: int) -> None:
        buffers, mine = _Buffers(), x.new_zeros(shape)
        sums.append(mine)
        out = flat(mine)
        for block in plan.blocks(start, stop):
            for group in range(groups):
                for channel, channels in plan.chunks():
                    tables = plan.layout(block, channels)
                    vectors, first, row, places = _upstream(plan, block, group, tables, upstream, buffers)
                    buffer = buffers.take("images", tables.size)
                    plan.pack(seen, block, group, channel, channels, buffer, False)
                    loops.window_dots(
                        vectors, first, row, plan.outputs, places, buffer, tables.taps, tables.places,
                        tables.lanes, out, plan.first_weight(group, channel), plan.inner * plan.taps,
                    )  # fmt: skip

    in_parts(plan.images, plan.lanes, plan.work, some)
    for part in sums:
        result += part
    return result


class _Buffers:
    """Memory that pieces use one after the other: fresh pages cost more than what is written to them."""

    def __init__(self) -> None:
        self._named: dict[str, Array] = {}

    def take(self, name: str, size: int) -> Array:
        """An array of whatever was there before."""
        held = self._named.get(name)
        if held is None or len(held) < size:
            held = self._named[name] = np.empty(size, np.int64)
        return held[:size]


def _upstream(
    plan: Plan, block: Block, group: int, tables: Layout, upstream: Array, buffers: _Buffers
) -> tuple[Array, int, int, Array]:
    """The gradients of a block's results as vectors: their memory, the first, from row to row, and their places."""
    first = plan.first_result(block, group)
    if tables.lane == 1:
        return upstream, first, plan.each, tables.targets
    row = len(tables.slots) * LANES
    vectors = buffers.take("vectors", plan.outputs * row)
    loops.collect(upstream, first, plan.each, plan.outputs, tables.targets, tables.lane, tables.lanes, vectors)
    return vectors, 0, row, tables.slots
