"""Resampling, padding by what is there, and windows as columns: public linear maps, without communication.

Each works along one dimension after the other, so a table of places and weights for each dimension says it all. PyTorch
itself gives that table: its own operator, applied to an identity matrix along that dimension. Where all weights are one
(nearest, reflection, replication) nothing needs rescaling; elsewhere the products of the weights are rounded to fixed
point once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from encml.ring import kernels
from encml.ring.devices import beside
from encml.tensor.handlers.common import as_secret, by_public, session_of, wrap
from encml.tensor.handlers.pooling import each
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret

aten = torch.ops.aten
Handler = Callable[..., SharedTensor]
_WIDTH = 2


@dataclass(frozen=True, slots=True)
class _Table:
    """y[q] = the sum over taps t of weights[q, t] * x[places[q, t]], along one dimension."""

    places: Tensor
    weights: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> _Table:
        """The table of a matrix (inputs, outputs), float64: as many taps as the fullest column has entries."""
        taps = max(1, int((matrix != 0).sum(0).max())) if matrix.shape[1] else 1
        places = (matrix != 0).to(torch.uint8).topk(taps, 0).indices.sort(0).values.t()
        return cls(places, matrix.t().gather(1, places))


@dataclass(frozen=True, slots=True)
class _Map:
    """A linear map of (..., *size), as a table for every dimension."""

    tables: list[_Table]
    size: list[int]

    @property
    def places(self) -> list[Tensor]:
        return [table.places for table in self.tables]

    def weights(self) -> Tensor | None:
        """(*outputs, *taps), or None if every output is one input."""
        if all(table.weights.shape[1] == 1 and bool((table.weights == 1).all()) for table in self.tables):
            return None
        dims = len(self.tables)
        result = torch.ones((1,) * (2 * dims), dtype=torch.float64)
        for d, table in enumerate(self.tables):
            shape = [1] * (2 * dims)
            shape[d], shape[dims + d] = table.weights.shape
            result = result * table.weights.reshape(shape)
        return result

    def apply(self, x: Secret) -> Secret:
        weights, dims = self.weights(), len(self.tables)
        if weights is None:
            return x.linear(lambda terms: kernels.look_up(terms, self.places).flatten(-dims).squeeze(-1))
        return by_public(self._weighted, x, weights)

    def _weighted(self, x: Tensor, weights: Tensor) -> Tensor:
        """Tap by tap: all taps at once would be many times the result."""
        total: Tensor | None = None
        for taps, seen in self._taps(x, len(self.tables) - 1):
            column = weights
            for tap in reversed(taps):
                column = column.select(-1, tap)
            seen.mul_(column)
            total = seen if total is None else total.add_(seen)
        assert total is not None
        return total

    def _taps(self, x: Tensor, last: int) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """What each tap of dimensions 0 to ``last`` sees, in new memory: the last dimension is looked up first."""
        for tap, places in enumerate(self.tables[last].places.unbind(1)):
            seen = x.index_select(last - len(self.tables), beside(x, places))
            if last:
                yield from (((*taps, tap), part) for taps, part in self._taps(seen, last - 1))
            else:
                yield (tap,), seen

    def adjoint(self, gradient: Secret) -> Secret:
        weights, taps = self.weights(), (None,) * len(self.tables)
        if weights is None:
            return gradient.linear(lambda terms: kernels.put_back(terms[(..., *taps)], self.places, self.size))
        return by_public(
            lambda term, w: kernels.put_back(term[(..., *taps)] * w, self.places, self.size), gradient, weights
        )


def _map(size: Sequence[int], apply: Callable[[Tensor, int], Tensor]) -> _Map:
    """``apply(x, d)`` is the operator along dimension d of x (1, n, 2, ..., n, ..., 2), with n places there.

    The other dimensions, which stay as they are, have two places: PyTorch's antialiasing is wrong where one has one.
    """
    dims, tables = len(size), []
    for d, n in enumerate(size):
        identity = torch.eye(n, dtype=torch.float64).view(1, n, *(n if e == d else 1 for e in range(dims)))
        wide = identity.expand(1, n, *(n if e == d else _WIDTH for e in range(dims))).contiguous()
        tables.append(_Table.of(apply(wide, d).movedim(2 + d, 2).reshape(n, -1, _WIDTH ** (dims - 1))[..., 0]))
    return _Map(tables, list(size))


# Upsampling ----------------------------------------------------------------------------------------------------------


def _upsampling(op: Any, size: Sequence[int], output: Sequence[int], options: Sequence[Any]) -> _Map:
    """options: align_corners where the operator has it, then the scale of each dimension, as far as given."""
    flags = [option for option in options if isinstance(option, bool)]
    scales = [option for option in options if not isinstance(option, bool)]
    scales += [None] * (len(size) - len(scales))

    def apply(x: Tensor, d: int) -> Tensor:
        outputs = [n if e == d else _WIDTH for e, n in enumerate(output)]
        result: Tensor = op(x, outputs, *flags, *(scale if e == d else None for e, scale in enumerate(scales)))
        return result

    return _map(size, apply)


def upsample(op: Any) -> Handler:
    """The handler of an upsampling operator: a public linear map, local, rescaled later unless it only repeats."""

    def handler(x: SharedTensor, output_size: Sequence[int], *options: Any) -> SharedTensor:
        mapping = _upsampling(op, x.shape[2:], output_size, options)
        return wrap(mapping.apply(secret(x)), x.dtype)

    return handler


def upsample_backward(op: Any) -> Handler:
    """The handler of the derivative of upsampling operator ``op``."""

    def handler(
        gradient: SharedTensor, output_size: Sequence[int], input_size: Sequence[int], *options: Any
    ) -> SharedTensor:
        mapping = _upsampling(op, input_size[2:], output_size, options)
        return wrap(mapping.adjoint(secret(gradient)), gradient.dtype)

    return handler


# Padding -------------------------------------------------------------------------------------------------------------


def _padding(op: Any, size: Sequence[int], padding: Sequence[int]) -> _Map:
    """padding: before and behind the last dimension, then before and behind the one before it, and so on."""

    def apply(x: Tensor, d: int) -> Tensor:
        last = 2 * (len(size) - 1 - d)
        sides = [side if last <= place < last + 2 else 0 for place, side in enumerate(padding)]
        result: Tensor = op(x, sides)
        return result

    return _map(size, apply)


def pad(op: Any, dims: int) -> Handler:
    """The handler of reflection_pad1d to 3d and replication_pad1d to 3d. Local."""

    def handler(x: SharedTensor, padding: Sequence[int]) -> SharedTensor:
        op(_meta(x), padding)
        return wrap(_padding(op, x.shape[-dims:], padding).apply(secret(x)), x.dtype)

    return handler


def pad_backward(op: Any, dims: int) -> Handler:
    """The handler of the derivative of padding operator ``op``. Local."""

    def handler(gradient: Tensor, x: Tensor, padding: Sequence[int]) -> SharedTensor:
        upstream = as_secret(gradient, session_of(gradient, x))
        return wrap(_padding(op, x.shape[-dims:], padding).adjoint(upstream), gradient.dtype)

    return handler


# Windows as columns --------------------------------------------------------------------------------------------------


def im2col(
    x: SharedTensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> SharedTensor:
    """im2col (F.unfold): what the windows of an image see, as columns (N, C * kernel, windows). Local."""
    shape = aten.im2col(_meta(x), kernel_size, dilation, padding, stride).shape
    steps, output = _steps(x.shape[-2:], kernel_size, stride, padding, dilation)
    columns = secret(x).linear(lambda terms: kernels.unfold(terms, *steps, output).reshape(len(terms), *shape))
    return wrap(columns, x.dtype)


def col2im(
    x: SharedTensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> SharedTensor:
    """col2im (F.fold): every entry of the columns added to the place of the image that its window saw. Local."""
    shape = aten.col2im(_meta(x), output_size, kernel_size, dilation, padding, stride).shape
    steps, output = _steps(output_size, kernel_size, stride, padding, dilation)

    def image(terms: Tensor) -> Tensor:
        columns = terms.reshape(len(terms), *shape[:-2], math.prod(steps[0]), *output)
        return kernels.fold(columns, shape[-2:], *steps)

    return wrap(secret(x).linear(image), x.dtype)


def _steps(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[list[int], list[int], list[int], list[int]], list[int]]:
    """Kernel, stride, padding and dilation of both dimensions, and how many windows there are."""
    steps = each(2, kernel), each(2, stride), each(2, padding), each(2, dilation)
    output = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, *steps, strict=True)]
    return steps, output


def _meta(x: Tensor) -> Tensor:
    """A tensor of the same shape without contents, for PyTorch to check the arguments on."""
    return torch.empty(x.shape, dtype=x.dtype, device="meta")
