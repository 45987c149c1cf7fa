"""What the handlers share: operands in, results out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from encml.errors import InvalidTensor, SecretError, UnsupportedOperation
from encml.mpc.multiplication import product
from encml.mpc.session import Session
from encml.ring.layout import stack
from encml.tensor.public import Number, Operand, factor
from encml.tensor.secret import Secret, headroom, room_for_products
from encml.tensor.shared import SharedTensor, secret


def wrap(value: Secret, dtype: torch.dtype) -> SharedTensor:
    """A secret as a SharedTensor of logical ``dtype``."""
    return SharedTensor(value, dtype)


def session_of(*operands: Operand) -> Session:
    """The one session of all SharedTensors among the operands. Raises InvalidTensor if they are of different ones."""
    sessions = {id(x.session): x.session for x in operands if isinstance(x, SharedTensor)}
    if len(sessions) != 1:
        raise InvalidTensor(f"operands belong to {len(sessions)} sessions; share them in one")
    return next(iter(sessions.values()))


def result_dtype(*operands: Operand) -> torch.dtype:
    """PyTorch's type promotion over the logical dtypes: dimensions before scalars, tensors before numbers."""
    ranked: list[torch.dtype | None] = [None, None, None]
    for x in operands:
        if isinstance(x, Tensor):
            rank, dtype = (0 if x.ndim else 1), x.dtype
        else:
            rank, dtype = 2, _number_dtype(x)
        known = ranked[rank]
        ranked[rank] = dtype if known is None else torch.promote_types(known, dtype)
    result: torch.dtype | None = None
    for candidate in reversed(ranked):
        if candidate is not None:
            keeps = result is None or _category(candidate) >= _category(result)
            result = candidate if keeps or result is None else torch.promote_types(candidate, result)
    assert result is not None
    return result


def supported_dtype(x: Tensor, target: torch.dtype) -> torch.dtype:
    """``target``, if a SharedTensor of x's logical dtype can become one of it without touching its shares."""
    whole = not x.dtype.is_floating_point
    if target in (torch.float32, torch.float64) or target == x.dtype or (whole and target == torch.int64):
        return target
    if target == torch.bool:
        raise UnsupportedOperation(f"a SharedTensor of {x.dtype} cannot become bool; compare it with != 0")
    raise UnsupportedOperation(
        f"a SharedTensor of {x.dtype} cannot become {target}: its numbers are fixed-point; supported are float32 and "
        "float64, which change the logical dtype only"
    )


def _number_dtype(x: Number) -> torch.dtype:
    if isinstance(x, bool):
        return torch.bool
    return torch.int64 if isinstance(x, int) else torch.get_default_dtype()


def _category(dtype: torch.dtype) -> int:
    return 0 if dtype == torch.bool else 2 if dtype.is_floating_point else 1


def as_secret(x: Operand, session: Session) -> Secret:
    """An operand of a sum or comparison as a secret; plain ones are encoded as public shares."""
    return secret(x) if isinstance(x, SharedTensor) else Secret.of_public(session, x)


def as_number(value: Number, dtype: torch.dtype) -> Number:
    """A Python number as a tensor of ``dtype`` would hold it: what is put into integers loses its fraction."""
    return value if dtype.is_floating_point else bool(value) if dtype == torch.bool else int(value)


def axis(x: Tensor, dim: int, new: int = 0) -> int:
    """Dimension ``dim`` of x, negative ones from the end, as the dimension of its payload, behind the leading axis.

    new: dimensions that the operation adds. Raises IndexError as PyTorch does.
    """
    rank = max(x.ndim + new, 1)
    if not -rank <= dim < rank:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-rank}, {rank - 1}], but got {dim})")
    return dim % rank + 1


def bilinear(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Secret:
    """f(x, y), f linear in each argument, of two tensors at least one of which is secret.

    Both secret: settles pending ones, then local work; the result is a pending product. One public: local work alone.
    """
    session = session_of(x, y)
    if isinstance(x, SharedTensor) and isinstance(y, SharedTensor):
        a, b = secret(x), secret(y)
        room_for_products(a, b)
        rows = product(session.parties, f, a.replicate(), b.replicate())
        return Secret(session, a.fraction_bits + b.fraction_bits, rows=rows)
    if isinstance(x, SharedTensor):
        return by_public(f, secret(x), y)
    return by_public(lambda term, plain: f(plain, term), secret(y), x)


def by_public(f: Callable[[Tensor, Tensor], Tensor], value: Secret, plain: Operand) -> Secret:
    """f(value, plain) of a secret and something public. Local, unless too many fraction bits are settled first."""
    integers, bits = factor(plain, value.session.fraction_bits)
    held = headroom(value, integers, bits)
    there = integers.to(held.terms.device)
    return held.like(stack([f(term, there) for term in held.terms]), bits)


def write(target: Tensor, source: Secret, dtype: torch.dtype) -> Tensor:
    """Copy a secret of logical ``dtype`` into a SharedTensor in place, so that views of it see it.

    Raises SecretError for a plain target.
    """
    if not isinstance(target, SharedTensor):
        raise SecretError(
            f"a secret cannot be written into a plain tensor of shape {tuple(target.shape)}; share that tensor first"
        )
    if torch.broadcast_shapes(target.shape, source.shape) != target.shape:  # type: ignore[no-untyped-call]
        raise InvalidTensor(f"a value of shape {tuple(source.shape)} does not fit in place into {tuple(target.shape)}")
    if not torch.can_cast(dtype, target.dtype):
        raise UnsupportedOperation(
            f"a value of {dtype} cannot be written in place into a SharedTensor of {target.dtype}"
        )
    secret(target).overwrite(source)
    return target


def in_place(operation: Callable[..., SharedTensor]) -> Callable[..., Tensor]:
    """The in-place version of an out-of-place handler."""

    def handler(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = operation(x, *args, **kwargs)
        return write(x, secret(result), result.dtype)

    return handler
