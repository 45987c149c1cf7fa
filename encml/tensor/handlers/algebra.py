"""Products of more than two factors, along a dimension, or joined with a sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from encml.tensor.handlers.arithmetic import add_secrets, mul, scale
from encml.tensor.handlers.common import as_secret, bilinear, result_dtype, session_of, supported_dtype, wrap
from encml.tensor.handlers.copies import join, to_copy
from encml.tensor.handlers.creation import new_full
from encml.tensor.handlers.views import select, slice_, transpose, view
from encml.tensor.public import Number
from encml.tensor.shared import SharedTensor, secret

Bilinear = Callable[[Tensor, Tensor], Tensor]


def plus_product(f: Bilinear) -> Callable[..., SharedTensor]:
    """The handler of addmm and its kin: beta * bias + alpha * f(x, y); the bias joins before the truncation."""

    def handler(bias: Tensor, x: Tensor, y: Tensor, *, beta: Number = 1, alpha: Number = 1) -> SharedTensor:
        session = session_of(bias, x, y)
        if isinstance(x, SharedTensor) or isinstance(y, SharedTensor):
            product = bilinear(f, x, y)
        else:
            product = as_secret(f(x, y), session)
        if alpha != 1:
            product = scale(product, alpha)
        dtype = result_dtype(bias, x, y)
        addend = as_secret(bias, session)
        if beta == 0:
            addend = addend.like(torch.zeros_like(addend.terms))
        return wrap(add_secrets(product, addend if beta == 1 else scale(addend, beta)), dtype)

    return handler


def batch_sum(x: Tensor, y: Tensor) -> Tensor:
    """The sum over the batch of x @ y, as one product."""
    return torch.einsum("bij,bjk->ik", x, y)


def addcmul(x: Tensor, y: Tensor, z: Tensor, *, value: Number = 1) -> SharedTensor:
    """addcmul: x + value * y * z, as a sum and one truncation."""
    session = session_of(x, y, z)
    product = as_secret(mul(y, z) if isinstance(y, SharedTensor) or isinstance(z, SharedTensor) else y * z, session)
    if value != 1:
        product = scale(product, value)
    return wrap(add_secrets(product, as_secret(x, session)), result_dtype(x, y, z))


def lerp(x: Tensor, end: Tensor, weight: Tensor | Number) -> SharedTensor:
    """lerp.Scalar, lerp.Tensor: x + weight * (end - x)."""
    session = session_of(*(t for t in (x, end, weight) if isinstance(t, Tensor)))
    start = as_secret(x, session)
    way = wrap(add_secrets(as_secret(end, session), start, -1), result_dtype(x, end))
    return wrap(add_secrets(secret(mul(way, weight)), start), result_dtype(x, end))


def prod_all(x: SharedTensor, *, dtype: torch.dtype | None = None) -> SharedTensor:
    """prod: ceil(log2 n) products one after the other, each of half as many elements as the one before."""
    flat = view(to_copy(x, memory_format=torch.contiguous_format), [x.numel()])
    return prod_dim(flat, 0, dtype=dtype)


def prod_dim(x: SharedTensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> SharedTensor:
    """prod.dim_int: see ``prod_all``."""
    target = _product_dtype(x, dtype)
    if x.ndim == 0:
        return to_copy(x, dtype=target)
    front = transpose(x, 0, dim)
    if not len(front):
        front = new_full(front, (1, *front.shape[1:]), 1)
    while (n := front.shape[0]) > 1:
        half = n // 2
        product = mul(slice_(front, 0, 0, half), slice_(front, 0, half, 2 * half))
        front = join(torch.cat)([product, slice_(front, 0, 2 * half)]) if n % 2 else product
    result = transpose(front, 0, dim)
    return to_copy(result if keepdim else select(result, dim, 0), dtype=target, memory_format=torch.contiguous_format)


def cumprod(x: SharedTensor, dim: int, *, dtype: torch.dtype | None = None) -> SharedTensor:
    """cumprod: ceil(log2 n) products one after the other, each of up to n elements (Kogge and Stone 1973)."""
    target = _product_dtype(x, dtype)
    if x.ndim == 0:
        return to_copy(x, dtype=target)
    front = transpose(x, 0, dim)
    reach = 1
    while reach < front.shape[0]:
        further = mul(slice_(front, 0, reach), slice_(front, 0, 0, -reach))
        front = join(torch.cat)([slice_(front, 0, 0, reach), further])
        reach *= 2
    return to_copy(transpose(front, 0, dim), dtype=target, memory_format=torch.contiguous_format)


def _product_dtype(x: SharedTensor, dtype: torch.dtype | None) -> torch.dtype:
    return supported_dtype(x, dtype or (x.dtype if x.dtype.is_floating_point else torch.int64))


def trilinear(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    expand_x: Sequence[int],
    expand_y: Sequence[int],
    expand_z: Sequence[int],
    summed: Sequence[int],
    unroll: int = 1,
) -> Tensor:
    """_trilinear (F.bilinear): the sum of x * y * z over ``summed``, once each has its new dimensions.

    What only x and y have is summed up in their product, before it is rescaled and meets z.
    """
    rank = x.ndim + len(expand_x)
    letters = "abcdefghijklmnop"[:rank]
    names = [
        "".join(letter for i, letter in enumerate(letters) if i not in absent)
        for absent in (expand_x, expand_y, expand_z)
    ]
    kept = "".join(letter for i, letter in enumerate(letters) if i not in summed)
    inner = "".join(letter for letter in letters if letter in names[0] + names[1] and letter in kept + names[2])
    first = _einsum(f"{names[0]},{names[1]}->{inner}", x, y)
    return _einsum(f"{inner},{names[2]}->{kept}", first, z)


def _einsum(equation: str, x: Tensor, y: Tensor) -> Tensor:
    if isinstance(x, SharedTensor) or isinstance(y, SharedTensor):
        return wrap(bilinear(lambda a, b: torch.einsum(equation, a, b), x, y), result_dtype(x, y))
    return torch.einsum(equation, x, y)
