"""Convolutions in one to three dimensions, transposed ones too: secret by secret, or with a public operand.

One ring element an output, whatever the window; the result is a pending product (see Secret), and so are both
gradients. A transposed convolution is the input gradient of the convolution with the same weight, and the other way
round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import EllipsisType

import torch
from torch import Tensor

from encml.errors import InvalidTensor
from encml.ring import kernels
from encml.ring.kernels import Adding
from encml.tensor.handlers.arithmetic import add_secrets
from encml.tensor.handlers.common import as_secret, bilinear, result_dtype, session_of, wrap
from encml.tensor.handlers.linear import sum_dims
from encml.tensor.handlers.pooling import each
from encml.tensor.shared import SharedTensor, secret

_Settings = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation, groups."""


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> SharedTensor:
    """convolution; the bias joins before the truncation. Pending: 3 rounds and 8.75 B a party and output, later."""
    operands = [t for t in (x, weight, bias) if t is not None]
    session = session_of(*operands)
    size = x.shape[2:]
    settings = _settings(len(size), stride, padding, dilation, groups)
    if transposed:
        larger = [
            (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
            for n, k, s, p, d, extra in zip(
                size, weight.shape[2:], *settings[:3], each(len(size), output_padding), strict=True
            )
        ]
        f = _kernel(kernels.input_gradient, larger, settings)
    else:
        f = _kernel(kernels.convolution, None, settings)
    if isinstance(x, SharedTensor) or isinstance(weight, SharedTensor):
        result = bilinear(f, x, weight)
    else:
        plain = torch.convolution(x, weight, None, stride, padding, dilation, transposed, output_padding, groups)
        result = as_secret(plain, session)
    if bias is not None:
        if bias.shape != result.shape[1:2]:
            raise InvalidTensor(
                f"convolution: a bias of shape {tuple(bias.shape)} for a result of shape {tuple(result.shape)}; "
                f"expected one number for each of its {result.shape[1]} channels"
            )
        addend = as_secret(bias, session)
        addend = addend.like(addend.terms.reshape(-1, bias.numel(), *(1,) * len(size)))
        result = add_secrets(result, addend, into_left=True)
    return wrap(result, result_dtype(*operands))


def convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """convolution_backward: the gradients of input and weight are products of secrets, pending."""
    if not isinstance(gradient, SharedTensor):
        gradient = wrap(as_secret(gradient, session_of(x, weight)), gradient.dtype)
    settings = _settings(x.ndim - 2, stride, padding, dilation, groups)
    to_x = to_weight = to_bias = None
    if output_mask[0]:
        if transposed:
            f = _kernel(kernels.convolution, None, settings)
        else:
            f = _kernel(kernels.input_gradient, x.shape[2:], settings)
        to_x = wrap(bilinear(f, gradient, weight), result_dtype(gradient, weight))
        if to_x.shape != x.shape:
            # Output padding beyond a stride, which a dilation allows, makes room for windows that x has none of.
            index: tuple[EllipsisType | slice, ...] = (..., *(slice(n) for n in x.shape[2:]))
            to_x = wrap(secret(to_x).linear(lambda terms: terms[index].contiguous()), to_x.dtype)
    if output_mask[1]:
        f = _kernel(kernels.weight_gradient, weight.shape[2:], settings)
        pair = (gradient, x) if transposed else (x, gradient)
        to_weight = wrap(bilinear(f, *pair), result_dtype(*pair))
    if output_mask[2]:
        to_bias = sum_dims(gradient, (0, *range(2, gradient.ndim)))
    return to_x, to_weight, to_bias


def _settings(
    dims: int, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> _Settings:
    return each(dims, stride), each(dims, padding), each(dims, dilation), groups


def _kernel(kernel: Callable[..., Tensor], size: Sequence[int] | None, settings: _Settings) -> Adding:
    """A convolution or an adjoint of it as a bilinear map of two tensors."""
    sized = () if size is None else (list(size),)
    return Adding(partial(_apply, kernel, (*sized, *settings)))


def _apply(
    kernel: Callable[..., Tensor], arguments: tuple[object, ...], x: Tensor, y: Tensor, total: Tensor | None = None
) -> Tensor:
    return kernel(x, y, *arguments, total=total)
