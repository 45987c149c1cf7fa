"""Where everything lies when windows move over images: tables of offsets for ``encml.ring.kernels.loops``.

A few images are copied into a buffer (images, channels, phases, extent), with zeros around them. The phases keep the
places that a stride s steps over apart: place e of phase p of a dimension is what the image has at e s + p, so that
neighbouring windows see neighbouring elements at every tap. A vector is 8 neighbouring windows of a line; or, where
lines are so short that vectors would be half empty, the same window of 8 images, which then lie innermost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from torch import Tensor

from encml.errors import InvalidTensor
from encml.ring.kernels import loops
from encml.ring.kernels.loops import Array, Three, flat
from encml.ring.kernels.tiles import LANES

Sizes = Sequence[int]
"""One number for every spatial dimension."""

BUFFER = 1 << 15
"""Elements of images that are worked on together, as far as one channel of one fits: 256 KiB of the L2 cache."""
WEIGHTS = 1 << 15
"""Elements of the weights that are worked on together, as far as those of one input channel fit."""
_CHANNELS = 8
"""So many channels of an image should fit into the buffer; else it is cut into slabs."""
TURNING = 0.75
"""What is left of the speed where images must be laid innermost first."""


def check_steps(dims: int, window: int, stride: Sizes, padding: Sizes, dilation: Sizes) -> None:
    """Raises InvalidTensor unless images and window have as many dimensions as there are steps, each as it may be."""
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


@dataclass(frozen=True, slots=True)
class Block:
    """Output places that are worked on together: all of some images, or a slab of one vector's images."""

    image: int
    images: int
    first: Three
    output: Three
    start: int
    """The first place within its image, in order of memory."""


@dataclass(frozen=True)
class Plan:
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
    stride: Three
    padding: Three
    dilation: Three

    @classmethod
    def of(
        cls, image: Sizes, weight: Sizes, result: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
    ) -> Plan:
        """Of the shapes of images, weight and result; the loops rely on what is checked here.

        Raises InvalidTensor if they do not fit together.
        """
        check_steps(len(image) - 2, len(weight) - 2, stride, padding, dilation)
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
        return cls(
            n, groups, inner, outputs // groups, _three(kernel, 1), _three(size, 1), _three(result[2:], 1),
            _three(stride, 1), _three(padding, 0), _three(dilation, 1),
        )  # fmt: skip

    @property
    def depthwise(self) -> bool:
        """One input channel a group."""
        return self.inner == 1 and self.groups > 1

    @property
    def pointwise(self) -> bool:
        """Every output place sees its own place of the image, and nothing else."""
        return self.taps == 1 and self.stride == (1, 1, 1) and self.padding == (0, 0, 0) and self.size == self.output

    @cached_property
    def taps(self) -> int:
        """Places in a window."""
        return math.prod(self.kernel)

    @cached_property
    def each(self) -> int:
        """Output places of an image."""
        return math.prod(self.output)

    @property
    def work(self) -> int:
        """Products of integers in all."""
        return self.images * self.groups * self.outputs * self.inner * self.taps * self.each

    @cached_property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Of the images."""
        return self.images, self.groups * self.inner, *self.size

    @cached_property
    def reach(self) -> tuple[Array, Array, Array]:
        """How far from its first place a window looks at each tap, in every dimension."""
        one, two, three = (np.arange(k) * d for k, d in zip(self.kernel, self.dilation, strict=True))
        return one, two, three

    @cached_property
    def phases(self) -> tuple[Array, Array, Array]:
        """The phases that windows look at, in every dimension."""
        one, two, three = (np.unique(r % s) for r, s in zip(self.reach, self.stride, strict=True))
        return one, two, three

    def extent(self, output: Three) -> Three:
        """The places of a phase that so many windows see, in every dimension."""
        one, two, three = (o + int(r[-1]) // s for o, r, s in zip(output, self.reach, self.stride, strict=True))
        return one, two, three

    @cached_property
    def lanes(self) -> int:
        """How many images lie innermost: 1 or LANES."""
        width, extent = 1, self.extent(self.output)
        for d in (2, 1, 0):
            width *= self.output[d]
            if extent[d] != self.output[d]:
                break
        full = width / (-(-width // LANES) * LANES)
        return LANES if TURNING * self.images > full * -(-self.images // LANES) * LANES else 1

    def room(self, output: Three) -> int:
        """Elements of a channel of a buffer, for a vector of images."""
        return self.lanes * math.prod(len(p) for p in self.phases) * math.prod(self.extent(output))

    @cached_property
    def slab(self) -> Three:
        """The output places of an image that are worked on together."""
        if self.room(self.output) * _CHANNELS <= BUFFER:
            return self.output
        axis = next((d for d in range(3) if self.output[d] > 1), 2)
        line = [1 if d == axis else o for d, o in enumerate(self.output)]
        halo = self.extent((1, 1, 1))[axis] - 1
        fits = BUFFER // _CHANNELS * (halo + 1) // self.room((line[0], line[1], line[2])) - halo
        line[axis] = min(self.output[axis], max(1, fits))
        return line[0], line[1], line[2]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Channels of a group that are worked on together: the first, and how many."""
        step = max(1, min(WEIGHTS // (self.outputs * self.taps), BUFFER // self.room(self.slab)))
        for channel in range(0, self.inner, step):
            yield channel, min(step, self.inner - channel)

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """The output places of images ``start`` up to before ``stop``."""
        _, channels = next(self.chunks())
        step = self.lanes
        if self.slab == self.output:
            step *= max(1, BUFFER // (channels * self.room(self.slab)))
        for image in range(start, stop, step):
            images = min(step, stop - image)
            if self.slab == self.output:
                yield Block(image, images, (0, 0, 0), self.output, 0)
                continue
            axis = next(d for d in range(3) if self.slab[d] != self.output[d])
            line = self.each // self.output[axis]
            for row in range(0, self.output[axis], self.slab[axis]):
                first, output = [0, 0, 0], list(self.output)
                first[axis], output[axis] = row, min(self.slab[axis], self.output[axis] - row)
                here, places = (first[0], first[1], first[2]), (output[0], output[1], output[2])
                yield Block(image, images, here, places, row * line)

    def layout(self, block: Block, channels: int) -> Layout:
        """The tables of a block; kept, for the same convolutions come again."""
        return _layout(self, block.images, block.output, channels)

    def first_result(self, block: Block, group: int) -> int:
        """Where in the results (N, O, *output) a block begins."""
        return (block.image * self.groups + group) * self.outputs * self.each + block.start

    def first_weight(self, group: int, channel: int) -> int:
        """Where in the weights a group's, from an input channel on, begin."""
        return (group * self.outputs * self.inner + channel) * self.taps

    def pack(
        self, images: Array, block: Block, group: int, channel: int, channels: int, buffer: Array, back: bool
    ) -> None:
        """See ``loops.pack``."""
        one, two, three = (f * s - p for f, s, p in zip(block.first, self.stride, self.padding, strict=True))
        loops.pack(
            images, self.shape, block.image, block.images, group * self.inner + channel, channels, self.lanes,
            self.phases, self.extent(block.output), self.stride, (one, two, three), buffer, back,
        )  # fmt: skip

    def depthwise_into(self, direction: int, images: Tensor, weight: Tensor, result: Tensor) -> None:
        """See ``loops.depthwise``; what is written must be contiguous."""
        loops.depthwise(
            flat(images), self.shape, flat(weight), flat(result), len(weight), self.output, self.kernel,
            self.stride, self.padding, self.dilation, direction,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Tables of offsets for some channels at the places of a block."""

    size: int
    """Elements of the buffer."""
    step: int
    """Elements from channel to channel of the buffer."""
    tap: Array
    """From a window's first place in the buffer to what it sees at each tap of one channel."""
    taps: Array
    """The same for all channels, one after the other."""
    places: Array
    """The first place in the buffer of each vector of windows."""
    targets: Array
    """The first place of each vector in the results of one output channel."""
    lanes: Array
    """How many places of each vector are real."""
    lane: int
    """Elements in the results from one place of a vector to the next."""
    slots: Array
    """The places of the vectors where they lie one after the other."""


@lru_cache(maxsize=128)
def _layout(plan: Plan, images: int, output: Three, channels: int) -> Layout:
    lanes, extent, step = plan.lanes, plan.extent(output), plan.room(output)
    area, line = extent[1] * extent[2], extent[2]
    phase = [np.searchsorted(p, r % s) for p, r, s in zip(plan.phases, plan.reach, plan.stride, strict=True)]
    shift = [r // s for r, s in zip(plan.reach, plan.stride, strict=True)]
    counts = [len(p) for p in plan.phases]
    number = _grid([phase[0] * counts[1] * counts[2], phase[1] * counts[2], phase[2]])
    tap = lanes * (number * math.prod(extent) + _grid([shift[0] * area, shift[1] * line, shift[2]]))
    # Lines of windows that lie side by side in the buffer as in the results: one or more dimensions.
    merged = 1 if line != output[2] else 2 if extent[1] != output[1] else 3
    width = math.prod(output[3 - merged :]) if lanes == 1 else 1
    starts = [np.arange(o) * pace for o, pace in zip(output, (area, line, 1), strict=True)]
    if lanes == 1:
        starts = [s if d < 3 - merged else s[:1] for d, s in enumerate(starts)]
    lines = _grid(starts)
    pieces = np.arange(0, width, LANES)
    vectors = -(-images // lanes)
    one_image = np.arange(vectors)
    places = _grid([one_image * channels * step, lanes * lines, pieces])
    each = plan.groups * plan.outputs * plan.each
    targets = _grid([one_image * lanes * each, np.arange(len(lines)) * width, pieces])
    if lanes == 1:
        real = np.minimum(width - pieces, LANES)
        ends = np.broadcast_to(real, (vectors, len(lines), len(pieces)))
    else:
        ends = np.broadcast_to(np.minimum(images - lanes * one_image, LANES)[:, None], (vectors, len(lines)))
    return Layout(
        size=vectors * channels * step, step=step, tap=tap,
        taps=_grid([np.arange(channels) * step, tap]), places=places, targets=targets,
        lanes=ends.reshape(-1).copy(), lane=1 if lanes == 1 else each, slots=np.arange(len(places)) * LANES,
    )  # fmt: skip


def _grid(offsets: Sequence[Array]) -> Array:
    """Every sum of one number of each list, the last one changing fastest."""
    total = np.zeros(1, np.int64)
    for one in offsets:
        total = (total[:, None] + one).reshape(-1)
    return total


def _three(values: Sizes, fill: int) -> Three:
    full = [fill] * (3 - len(values)) + [int(v) for v in values]
    return full[0], full[1], full[2]
