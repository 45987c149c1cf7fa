"""Convolutions over Z_2^64 in any one to three dimensions, and both their adjoints.

torch lays out a whole image's patches, then multiplies. Here they are laid out a tile at a time, some channels at some
places that fit in the cache, into memory that is used again: the products run at the speed of torch's matrix product,
and nothing grows with the size of the window. Depthwise convolutions have loops of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from encml.errors import InvalidTensor
from encml.ring.kernels import loops
from encml.ring.kernels.loops import Three, flat, rows
from encml.ring.kernels.matrices import multiply_into

Sizes = Sequence[int]
"""One number for every spatial dimension."""

_TILE = 1 << 17
"""Elements of the patches of a tile: 1 MiB, within the L2 cache."""
_PLACES = 512
"""Output places that a tile has at least, as far as there are: shorter products run slower."""


def convolution(x: Tensor, weight: Tensor, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int) -> Tensor:
    """Cross-correlation, x (N, C, *size) with weight (O, C / groups, *kernel), as torch.nn.functional.conv1d to 3d.

    Raises InvalidTensor, as the other two do, if the shapes do not fit together.
    """
    _check_steps(x.ndim - 2, weight.ndim - 2, stride, padding, dilation)
    output = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    plan = _Plan.of(x.shape, weight.shape, (len(x), len(weight), *output), stride, padding, dilation, groups)
    images = _solid(x)
    if plan.depthwise:
        result = x.new_zeros(len(x), len(weight), *output)
        plan.depthwise_into(0, images, weight, result)
        return result
    result = x.new_empty(len(x), len(weight), *output)
    matrix = weight.reshape(groups, plan.outputs, -1)
    buffers = _Buffers(x)
    for block in plan.blocks():
        for group in range(groups):
            target = block.part(result, group, groups)
            products = target[0] if len(target) == 1 else buffers.take("products", plan.outputs, block.places)
            for tile in plan.tiles(block, group):
                patches = tile.patches(images, buffers)
                multiply_into(products, matrix[group, :, tile.columns], patches, add=not tile.first)
            if len(target) > 1:
                loops.swap(products.view(plan.outputs, block.images, -1).numpy(), target.numpy())
    return result


def input_gradient(
    gradient: Tensor, weight: Tensor, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """The adjoint of ``convolution`` in x: gradient (N, O, *output) to (N, C, *size); a transposed convolution."""
    _check_steps(gradient.ndim - 2, weight.ndim - 2, stride, padding, dilation)
    image = len(gradient), weight.shape[1] * groups, *size
    plan = _Plan.of(image, weight.shape, gradient.shape, stride, padding, dilation, groups)
    if plan.pointwise:
        turned = weight.reshape(groups, plan.outputs, plan.inner).transpose(1, 2)
        return convolution(
            gradient, turned.reshape(-1, plan.outputs, *weight.shape[2:]), stride, padding, dilation, groups
        )
    result = gradient.new_zeros(image)
    target = _solid(result)
    if plan.depthwise:
        plan.depthwise_into(1, target, weight, gradient)
        return result
    matrix = weight.reshape(groups, plan.outputs, -1).transpose(1, 2).contiguous()
    gradient, buffers = gradient.contiguous(), _Buffers(gradient)
    for block in plan.blocks():
        for group in range(groups):
            upstream = block.by_channel(gradient, group, plan, buffers)
            for tile in plan.tiles(block, group):
                patches = buffers.take("patches", tile.rows, block.places)
                multiply_into(patches, matrix[group, tile.columns], upstream, add=False)
                tile.lay(target, patches, back=True)
    return result


def weight_gradient(
    x: Tensor, gradient: Tensor, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Tensor:
    """The adjoint of ``convolution`` in the weight: x (N, C, *), gradient (N, O, *output) to (O, C / groups, *size)."""
    _check_steps(x.ndim - 2, len(size), stride, padding, dilation)
    weight = x.new_zeros(gradient.shape[1], x.shape[1] // groups, *size)
    plan = _Plan.of(x.shape, weight.shape, gradient.shape, stride, padding, dilation, groups)
    images = _solid(x)
    if plan.depthwise:
        plan.depthwise_into(2, images, weight, gradient)
        return weight
    total = weight.view(groups, plan.outputs, -1)
    gradient, buffers = gradient.contiguous(), _Buffers(x)
    for block in plan.blocks():
        for group in range(groups):
            upstream = block.by_channel(gradient, group, plan, buffers)
            for tile in plan.tiles(block, group):
                patches = tile.patches(images, buffers)
                loops.add_dots(*rows(upstream), *rows(patches), block.places, total[group, :, tile.columns].numpy())
    return weight


class _Buffers:
    """Memory that tiles use one after the other: fresh pages cost more than what is written to them."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._named: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, columns: int) -> Tensor:
        """A matrix of whatever was there before."""
        held = self._named.get(name)
        if held is None or held.numel() < rows * columns:
            held = self._named[name] = self._like.new_empty(rows * columns)
        return held[: rows * columns].view(rows, columns)


@dataclass(frozen=True, slots=True)
class _Block:
    """Output places that are worked on together: all of some images, or some of one image."""

    image: int
    images: int
    first: Three
    output: Three
    start: int
    """The first place within its image, in order of memory."""

    @property
    def places(self) -> int:
        return self.images * math.prod(self.output)

    def part(self, result: Tensor, group: int, groups: int) -> Tensor:
        """(images, O / groups, places of one image) as a view of a contiguous result (N, O, *output)."""
        whole = result.view(len(result), groups, result.shape[1] // groups, -1)
        stop = self.start + math.prod(self.output)
        return whole[self.image : self.image + self.images, group, :, self.start : stop]

    def by_channel(self, gradient: Tensor, group: int, plan: _Plan, buffers: _Buffers) -> Tensor:
        """A contiguous gradient (N, O, *output) here, as a matrix (O / groups, places)."""
        source = self.part(gradient, group, plan.groups)
        if len(source) == 1:
            return source[0]
        matrix = buffers.take("upstream", plan.outputs, self.places)
        loops.swap(source.numpy(), matrix.view(plan.outputs, self.images, -1).numpy())
        return matrix


@dataclass(frozen=True, slots=True)
class _Tile:
    """Some channels of one group's windows at the places of a block."""

    plan: _Plan
    block: _Block
    group: int
    channel: int
    channels: int

    @property
    def first(self) -> bool:
        return self.channel == 0

    @property
    def columns(self) -> slice:
        """Where in a row of the weight matrix."""
        return slice(self.channel * self.plan.taps, (self.channel + self.channels) * self.plan.taps)

    @property
    def rows(self) -> int:
        return self.channels * self.plan.taps

    def lay(self, images: Tensor, patches: Tensor, *, back: bool = False) -> Tensor:
        """Fill the patches (rows, places) from the images, or add them back to where they came from."""
        plan, block = self.plan, self.block
        channel = self.group * plan.inner + self.channel
        loops.lay(
            flat(patches), flat(images), tuple(images.shape), block.image, channel, block.images, self.channels,
            block.first, block.output, plan.kernel, *plan.steps, back,
        )  # fmt: skip
        return patches

    def patches(self, images: Tensor, buffers: _Buffers) -> Tensor:
        """What the windows see, as a matrix (rows, places); of a pointwise convolution, the image itself."""
        if self.block.images > 1 or not self.plan.pointwise:
            return self.lay(images, buffers.take("patches", self.rows, self.block.places))
        first = self.group * self.plan.inner + self.channel
        places = slice(self.block.start, self.block.start + self.block.places)
        return images[self.block.image, first : first + self.channels].flatten(1)[:, places]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The sizes of one convolution, in three dimensions, and how it is cut into pieces."""

    images: int
    groups: int
    inner: int
    """Input channels of a group."""
    outputs: int
    """Output channels of a group."""
    kernel: Three
    size: Three
    output: Three
    steps: tuple[Three, Three, Three]
    """Stride, padding, dilation."""

    @classmethod
    def of(
        cls, image: Sizes, weight: Sizes, result: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
    ) -> _Plan:
        """Of the shapes of images, weight and result; the loops rely on what is checked here."""
        n, channels, *size = image
        outputs, inner, *kernel = weight
        shapes = f"images {tuple(image)}, weight {tuple(weight)}, result {tuple(result)}, groups {groups}"
        if channels != groups * inner or outputs % groups or (n, outputs) != tuple(result[:2]):
            raise InvalidTensor(
                f"convolution of {shapes}: the weight must be (O, C / groups, ...) for images (N, C, ...) and a result "
                "(N, O, ...)"
            )
        if min(outputs, inner, *size, *kernel, *result[2:]) < 1:
            raise InvalidTensor(
                f"convolution of {shapes}: only the batch may be empty, and no window exceeds its image"
            )
        steps = _three(stride, 1), _three(padding, 0), _three(dilation, 1)
        return cls(
            n, groups, inner, outputs // groups, _three(kernel, 1), _three(size, 1), _three(result[2:], 1), steps
        )

    @property
    def taps(self) -> int:
        """Places in a window."""
        return math.prod(self.kernel)

    @property
    def depthwise(self) -> bool:
        return self.inner == 1 and self.groups > 1

    @property
    def pointwise(self) -> bool:
        stride, padding, _ = self.steps
        return self.taps == 1 and stride == (1, 1, 1) and padding == (0, 0, 0) and self.size == self.output

    def depthwise_into(self, direction: int, images: Tensor, weight: Tensor, result: Tensor) -> None:
        """See ``loops.depthwise``; what is written must be contiguous."""
        loops.depthwise(
            flat(images), tuple(images.shape), flat(weight), flat(result), len(weight), self.output, self.kernel,
            *self.steps, direction,
        )  # fmt: skip

    def blocks(self) -> Iterator[_Block]:
        each = math.prod(self.output)
        if not self.images * each:
            return
        wanted = max(_PLACES, _TILE // (self.inner * self.taps))
        if each <= wanted:
            step = wanted // each
            for image in range(0, self.images, step):
                yield _Block(image, min(step, self.images - image), (0, 0, 0), self.output, 0)
            return
        axis = next(a for a in range(3) if self.output[a] > 1)
        slab = each // self.output[axis]
        step = max(1, wanted // slab)
        for image in range(self.images):
            for row in range(0, self.output[axis], step):
                first, output = [0, 0, 0], list(self.output)
                first[axis], output[axis] = row, min(step, self.output[axis] - row)
                yield _Block(image, 1, (first[0], first[1], first[2]), (output[0], output[1], output[2]), row * slab)

    def tiles(self, block: _Block, group: int) -> Iterator[_Tile]:
        step = max(1, _TILE // (self.taps * block.places))
        for channel in range(0, self.inner, step):
            yield _Tile(self, block, group, channel, min(step, self.inner - channel))


def _check_steps(dims: int, window: int, stride: Sizes, padding: Sizes, dilation: Sizes) -> None:
    if not (1 <= dims <= 3 and dims == window == len(stride) == len(padding) == len(dilation)):
        raise InvalidTensor(
            f"convolution of images of {dims} dimensions with windows of {window}, and {len(stride)} strides, "
            f"{len(padding)} paddings, {len(dilation)} dilations: expected 1 to 3 of each, equally many"
        )
    if min(*stride, *dilation) < 1 or min(padding) < 0:
        raise InvalidTensor(
            f"convolution with stride {list(stride)}, padding {list(padding)}, dilation {list(dilation)}: stride and "
            "dilation start at 1, padding at 0"
        )


def _three(values: Sizes, missing: int) -> Three:
    """One to three numbers as three, ``missing`` in front."""
    a, b, c = (*(missing,) * (3 - len(values)), *(int(v) for v in values))
    return a, b, c


def _solid(x: Tensor) -> Tensor:
    """(N, C, *size) as contiguous (N, C, D, H, W); a view where x is contiguous."""
    return x.reshape(*x.shape[:2], *_three(x.shape[2:], 1)).contiguous()
