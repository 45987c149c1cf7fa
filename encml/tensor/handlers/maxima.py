"""Maximum pooling in one to three dimensions.

A maximum is a tournament in each window, exact. Windows that overlap share comparisons where dimensions are worked
through one by one: maxima along lines first, then maxima of these. Public sizes decide whether that is cheaper than one
tournament over whole windows, which has fewer rounds.

Which place won stays secret, as one bit a place that is kept for backward, so nothing is compared there. The indices of
the maxima are worked out from these bits when they are used, and only then.

A ReLU after a maximum pool gives what it gives before it, and compares a quarter as many elements or fewer: models that
leave the order open should pool first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.mpc import comparison, ordering
from encml.mpc.comparison import SecretBits
from encml.mpc.costs import COSTS
from encml.mpc.session import Session
from encml.mpc.sharing import public
from encml.net.transport import PARTIES
from encml.ring import kernels
from encml.ring.bits import words_for
from encml.ring.devices import beside
from encml.tensor.handlers.common import as_secret, session_of, wrap
from encml.tensor.handlers.pooling import each, geometry
from encml.tensor.secret import Deferred, Secret
from encml.tensor.shared import SharedTensor, secret

Handler = Callable[..., Any]
Index = tuple[EllipsisType | slice, ...]


def maximum(op: Any, dims: int) -> Handler:
    """The handler of max_pool2d_with_indices or max_pool3d_with_indices: (maxima, secret indices).

    What is padding never wins, and the first of equals does. Rounds and bytes: those of ``ordering.maximum_cost`` for
    the k places and n windows of each stage (see ``stages_of``). The indices cost 2 rounds and 5.3 k B a party and
    window of each stage, when they are first used.
    """

    def handler(
        x: SharedTensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> tuple[SharedTensor, SharedTensor]:
        shape = op(_meta(x), kernel_size, stride, padding, dilation, ceil_mode)[0].shape
        steps = (*geometry(dims, kernel_size, stride, padding), each(dims, dilation))
        return _maximum(x, _window_places(x, steps, shape[-dims:]))

    return handler


def maximum_backward(dims: int) -> Handler:
    """The handler of max_pool2d_with_indices_backward or max_pool3d_with_indices_backward.

    In each stage the gradient of a window is selected for each of its k places but the last, which gets the rest: 2
    rounds and 10.7 (k - 1) B a party and window, and no comparison.
    """

    def handler(
        gradient: Tensor,
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ceil_mode: bool,
        indices: Tensor,
    ) -> SharedTensor:
        steps = (*geometry(dims, kernel_size, stride, padding), each(dims, dilation))
        return _backward(gradient, x, indices, _window_places(x, steps, gradient.shape[-dims:]))

    return handler


def adaptive_maximum(op: Any, dims: int) -> Handler:
    """The handler of adaptive_max_pool2d or adaptive_max_pool3d, see ``maximum``."""

    def handler(x: SharedTensor, output_size: Sequence[int]) -> tuple[SharedTensor, SharedTensor]:
        shape = op(_meta(x), output_size)[0].shape
        return _maximum(x, _adaptive_places(x, shape[-dims:]))

    return handler


def adaptive_maximum_backward(dims: int) -> Handler:
    """The handler of adaptive_max_pool2d_backward or adaptive_max_pool3d_backward, see ``maximum_backward``."""

    def handler(gradient: Tensor, x: Tensor, indices: Tensor) -> SharedTensor:
        return _backward(gradient, x, indices, _adaptive_places(x, gradient.shape[-dims:]))

    return handler


@dataclass(frozen=True, slots=True)
class Stage:
    """Maxima over windows along some dimensions of ``shape``, its ``axes`` (from the end), looked up at ``places``."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    places: list[Tensor]

    @property
    def k(self) -> int:
        """The candidates in each window."""
        return math.prod(table.shape[1] for table in self.places)

    @property
    def result(self) -> tuple[int, ...]:
        """The shape of the maxima."""
        shape = list(self.shape)
        for axis, table in zip(self.axes, self.places, strict=True):
            shape[axis] = len(table)
        return tuple(shape)

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return math.prod(self.result)

    @property
    def overlaps(self) -> bool:
        """Whether a place belongs to more than one window."""
        seen = [[place for window in table.tolist() for place in set(window)] for table in self.places]
        return any(len(set(places)) < len(places) for places in seen)

    def candidates(self, payload: Tensor) -> Tensor:
        """What the windows see in a payload (S, *shape): (S, k, windows)."""
        seen = kernels.look_up(payload.movedim(self.axes, self._last), self.places)
        return seen.reshape(len(payload), self.windows, self.k).transpose(1, 2)

    def put_back(self, parts: Tensor) -> Tensor:
        """The adjoint of ``candidates``: parts (S, k, windows), each added to its place, to (S, *shape)."""
        outputs, taps = ([table.shape[d] for table in self.places] for d in (0, 1))
        lead = [n for place, n in enumerate(self.shape, -len(self.shape)) if place not in self.axes]
        parts = parts.transpose(1, 2).reshape(len(parts), *lead, *outputs, *taps)
        whole = kernels.put_back(parts, self.places, [self.shape[axis] for axis in self.axes])
        return whole.movedim(self._last, self.axes)

    @property
    def sides(self) -> tuple[Index, Index] | None:
        """Where the first and the second place of every window are, of windows of two at equal distances; else None."""
        if len(self.axes) > 1 or self.k != 2:
            return None
        table = self.places[0]
        steps = table[1:] - table[:-1]
        if len(steps) and (int(steps[0, 0]) < 1 or bool((steps != steps[0, 0]).any())):
            return None
        step, behind = int(steps[0, 0]) if len(steps) else 1, (slice(None),) * (-1 - self.axes[0])
        one, two = (slice(int(side[0]), int(side[-1]) + 1, step) for side in table.unbind(1))
        return (..., one, *behind), (..., two, *behind)

    def flat(self, payload: Tensor) -> Tensor:
        """A payload (S, *result) as (S, windows)."""
        return payload.movedim(self.axes, self._last).reshape(len(payload), self.windows)

    def unflat(self, payload: Tensor) -> Tensor:
        """The inverse of ``flat``."""
        lead = [n for place, n in enumerate(self.result, -len(self.shape)) if place not in self.axes]
        shaped = payload.view(len(payload), *lead, *(len(table) for table in self.places))
        return shaped.movedim(self._last, self.axes)

    @property
    def _last(self) -> tuple[int, ...]:
        return tuple(range(-len(self.axes), 0))


def stages_of(shape: Sequence[int], places: list[Tensor]) -> list[Stage]:
    """How the maxima of ``shape`` are found: over whole windows at once, or along one dimension after the other.

    The last dimension goes first, so that the first of equals wins in order of memory either way. What costs less is
    chosen, a round counting as ``ordering.BYTES_A_ROUND``. Depends on public sizes alone.
    """
    dims = len(places)
    # Where windows are one place wide they only leave places out, best at once.
    order = sorted(range(dims), key=lambda d: (places[d].shape[1] > 1, -d))
    one_by_one, before = [], tuple(shape)
    for d in order:
        stage = Stage(before, (d - dims,), [places[d]])
        one_by_one.append(stage)
        before = stage.result
    whole = [Stage(tuple(shape), tuple(range(-dims, 0)), places)]
    return min(whole, one_by_one, key=_price)


def _price(stages: list[Stage]) -> float:
    """Of the tournaments and of the selections on the way back, in bytes that a party sends."""
    rounds = sent = 0
    for stage in stages:
        play = ordering.maximum_cost(stage.k, stage.windows, winner=True)
        rounds += play[0] + COSTS["select"].rounds(0)
        sent += play[1] + COSTS["select"].sent((stage.k - 1) * stage.windows, 0)
    return rounds * ordering.BYTES_A_ROUND + sent / PARTIES


def _maximum(x: SharedTensor, places: list[Tensor]) -> tuple[SharedTensor, SharedTensor]:
    value, session, stages = secret(x), x.session, stages_of(x.shape, places)
    payload, winners = _play(value, stages, "max_pool")
    maxima = wrap(value.like(payload), x.dtype)
    indices = wrap(Secret(session, 0, payload=torch.empty_like(payload)), torch.int64)
    make = partial(_indices, session, stages, winners, len(places))
    indices._secret = Deferred(session, make).keep("game", (stages, winners))
    return maxima, indices


def _play(value: Secret, stages: list[Stage], operation: str) -> tuple[Tensor, list[SecretBits]]:
    """The maxima (S, *result), and what won in each window of each stage.

    That is which place, as bits (k, windows); of ``sides``, whether the second did, as bits in the order of the result:
    most pools have windows of two, and there nothing needs to be laid out anew.
    """
    winners, payload, parties = [], value.replicate().contiguous(), value.session.parties
    bits = value.session.compared_bits(value.fraction_bits)
    for stage in stages:
        if stage.sides is None:
            seen = stage.candidates(payload)
            largest, won = ordering.maximum_and_winner(parties, seen, bits=bits, operation=operation)
            payload = stage.unflat(largest)
        else:
            first, second = (payload[side] for side in stage.sides)
            ahead = (first - second).contiguous()
            won = comparison.negative(parties, ahead, bits, operation)
            chosen = comparison.select(parties, won, ahead, operation)
            payload = torch.sub(first, chosen, out=chosen)
        winners.append(won)
        payload = payload.contiguous()
    return payload, winners


def _backward(gradient: Tensor, x: Tensor, indices: Tensor, places: list[Tensor]) -> SharedTensor:
    session = session_of(gradient, x, indices)
    upstream = as_secret(gradient, session)
    if not isinstance(indices, SharedTensor):
        return wrap(upstream.linear(partial(_put_at, Tensor.scatter_add_, indices, x.shape, len(places))), x.dtype)
    stages, winners = secret(indices).fact("game") or (stages_of(x.shape, places), None)
    if winners is None:
        _, winners = _play(as_secret(x, session), stages, "max_pool_backward")
    return wrap(_to_winners(upstream, stages, winners, "max_pool_backward"), gradient.dtype)


def _to_winners(value: Secret, stages: list[Stage], winners: list[SecretBits], operation: str) -> Secret:
    """Every element of ``value``, one a window, at the place that won there; what meets at a place is added up."""
    payload, parties = value.replicate().contiguous(), value.session.parties
    for stage, won in zip(reversed(stages), reversed(winners), strict=True):
        if stage.sides is not None:
            chosen = comparison.select(parties, won, payload, operation)
            first, second = stage.sides
            whole = payload.new_zeros(len(payload), *stage.shape)
            torch.sub(payload, chosen, out=whole[first])
            whole[second] += chosen
            payload = whole
            continue
        back = stage.flat(payload)[:, None].expand(-1, stage.k, -1)
        if stage.k > 1 and stage.windows:
            chosen = comparison.select(parties, _but_last(won), back[:, 1:], operation)
            back = torch.cat([chosen, back[:, :1] - chosen.sum(1, keepdim=True)], 1)
        payload = stage.put_back(back).contiguous()
    return value.like(payload)


def unpool(dims: int) -> Handler:
    """The handler of max_unpool2d or max_unpool3d: local with public indices.

    Secret ones must come straight from max_pool2d or max_pool3d, over windows that do not overlap: 2 rounds and 10.7
    (k - 1) B a party and window of each stage.
    """

    def handler(x: Tensor, indices: Tensor, output_size: Sequence[int], *_: object) -> SharedTensor:
        value, shape = as_secret(x, session_of(x, indices)), (*x.shape[:-dims], *output_size)
        if not isinstance(indices, SharedTensor):
            return wrap(value.linear(partial(_put_at, Tensor.scatter_, indices, shape, dims)), x.dtype)
        stages, winners = secret(indices).fact("game") or ([], [])
        if not stages or stages[0].shape != shape or any(stage.overlaps for stage in stages):
            raise UnsupportedOperation(
                f"max_unpool{dims}d to {tuple(output_size)}: where secret indices point is known only if they come "
                f"straight from max_pool{dims}d of an image of that size, over windows that do not overlap; use "
                "F.interpolate or a ConvTranspose layer otherwise"
            )
        return wrap(_to_winners(value, stages, winners, "max_unpool"), x.dtype)

    return handler


def _put_at(scatter: Callable[..., Tensor], indices: Tensor, shape: Sequence[int], dims: int, terms: Tensor) -> Tensor:
    """Public indices: terms (..., *output), each put or added at its place of (..., *size)."""
    lead = (len(terms), *shape[:-dims])
    flat = terms.new_zeros(*lead, math.prod(shape[-dims:]))
    placed = scatter(flat, -1, beside(terms, indices).flatten(-dims).expand(*lead, -1), terms.flatten(-dims))
    return placed.view(*lead, *shape[-dims:])


def _indices(session: Session, stages: list[Stage], winners: list[SecretBits], dims: int) -> Secret:
    """Where in its plane each maximum is: what the winners would say if every place said its own number."""
    parties, shape = session.parties, stages[0].shape
    numbers = torch.arange(math.prod(shape[-dims:])).view(shape[-dims:]).expand(shape)
    payload = public(parties, numbers)
    for stage, won in zip(stages, winners, strict=True):
        if stage.sides is not None:
            first, second = (payload[side] for side in stage.sides)
            payload = first + comparison.select(parties, won, (second - first).contiguous(), "max_pool")
            continue
        candidates = stage.candidates(payload)
        chosen = candidates[:, -1:]
        if stage.k > 1 and stage.windows:
            others = candidates[:, :-1] - chosen
            chosen = chosen + comparison.select(parties, _but_last(won), others, "max_pool", [stage.k - 1])
        payload = stage.unflat(chosen.reshape(len(chosen), stage.windows))
    return Secret(session, 0, payload=payload.contiguous())


def _but_last(hot: SecretBits) -> SecretBits:
    """The bits of all places but the last."""
    rows, windows = hot.shape[0] - 1, hot.shape[1]
    return SecretBits(hot.plane[:, : words_for(rows * windows)], (rows, windows))


def _window_places(
    x: Tensor, steps: tuple[list[int], list[int], list[int], list[int]], output: Sequence[int]
) -> list[Tensor]:
    kernel, stride, padding, dilation = steps
    size = x.shape[-len(kernel) :]
    try:
        return [
            kernels.window_places(*one) for one in zip(size, kernel, stride, padding, dilation, output, strict=True)
        ]
    except ValueError as error:
        raise UnsupportedOperation(f"max_pool of size {tuple(size)}: {error}, where PyTorch gives -inf") from error


def _adaptive_places(x: Tensor, output: Sequence[int]) -> list[Tensor]:
    return [kernels.adaptive_places(n, o)[0] for n, o in zip(x.shape[-len(output) :], output, strict=True)]


def _meta(x: Tensor) -> Tensor:
    """A tensor of the same shape without contents, for PyTorch to check the arguments on."""
    return torch.empty(x.shape, dtype=x.dtype, device="meta")
