"""What the handlers share: operands in, results out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from encml.errors import InvalidTensor, SecretError, UnsupportedOperation
from encml.mpc.multiplication import product
from encml.mpc.session import Session
from encml.ring.fixed import encode
from encml.tensor.secret import SLACK_BITS, Secret, scalar_bits
from encml.tensor.shared import SharedTensor, secret

Number = bool | int | float
Operand = Tensor | Number


def wrap(value: Secret, dtype: torch.dtype) -> SharedTensor:
    """A secret as a SharedTensor of logical ``dtype``."""
    return SharedTensor(value, dtype)


def session_of(*operands: Operand) -> Session:
    """The one session of all SharedTensors among the operands. Raises SecretError if they are of different ones."""
    sessions = {id(x.session): x.session for x in operands if isinstance(x, SharedTensor)}
    if len(sessions) != 1:
        raise SecretError(f"operands belong to {len(sessions)} sessions; share them in one")
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


def _number_dtype(x: Number) -> torch.dtype:
    if isinstance(x, bool):
        return torch.bool
    return torch.int64 if isinstance(x, int) else torch.get_default_dtype()


def _category(dtype: torch.dtype) -> int:
    return 0 if dtype == torch.bool else 2 if dtype.is_floating_point else 1


def as_secret(x: Operand, session: Session) -> Secret:
    """An operand of a sum or comparison as a secret; plain ones are encoded as public shares."""
    if isinstance(x, SharedTensor):
        return secret(x)
    values, bits = encode_public(x, session)
    return Secret.of_public(session, values, bits) if isinstance(values, Tensor) else _scalar(session, values, bits)


def encode_public(x: Operand, session: Session) -> tuple[Tensor | int, int]:
    """A plain operand and its fraction bits: an unencoded tensor, or a number as the ring integer it becomes."""
    if isinstance(x, Tensor):
        return x, session.fraction_bits if x.dtype.is_floating_point else 0
    if isinstance(x, complex) or not math.isfinite(x):
        raise InvalidTensor(f"cannot compute with {x!r} on secrets: expected a finite real number")
    bits = scalar_bits(x, session.fraction_bits)
    integer = round(math.ldexp(float(x), bits)) if isinstance(x, float) else int(x)
    if abs(integer) >= 1 << (62 - session.fraction_bits):
        raise InvalidTensor(f"{x!r} is beyond the fixed-point range at {session.fraction_bits} fraction bits")
    return integer, bits


def ring_public(x: Operand, session: Session) -> tuple[Tensor | int, int]:
    """As ``encode_public``, tensors encoded as well."""
    value, bits = encode_public(x, session)
    return (encode(value, bits) if isinstance(value, Tensor) else value), bits


def _scalar(session: Session, integer: int, bits: int) -> Secret:
    terms = torch.zeros(session.parties.shares_here, dtype=torch.int64)
    share = session.parties.share(terms, 0)
    if share is not None:
        share.fill_(integer)
    return Secret(session, bits, payload=terms)


def bilinear(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Secret:
    """f(x, y), f linear in each argument, of two tensors at least one of which is secret.

    Both secret: settles both, then local work; the result is a pending product. One public: local work alone.
    """
    session = session_of(x, y)
    if isinstance(x, SharedTensor) and isinstance(y, SharedTensor):
        a, b = secret(x), secret(y)
        rows = product(session.parties, f, a.payload, b.payload)
        return Secret(session, a.fraction_bits + b.fraction_bits, rows=rows)
    if isinstance(x, SharedTensor):
        plain, bits = ring_public(y, session)
        held = headroom(secret(x), bits)
        return held.like(torch.stack([f(term, as_tensor(plain)) for term in held.terms]), bits)
    plain, bits = ring_public(x, session)
    held = headroom(secret(y), bits)
    return held.like(torch.stack([f(as_tensor(plain), term) for term in held.terms]), bits)


def headroom(value: Secret, extra_bits: int) -> Secret:
    """Settle a secret first if ``extra_bits`` more fraction bits would be too many."""
    limit = 2 * value.session.fraction_bits + SLACK_BITS
    return value.settle() if value.fraction_bits + extra_bits > limit else value


def as_tensor(x: Tensor | int) -> Tensor:
    """A ring operand that must be a tensor."""
    return x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.int64)


def write(target: Tensor, source: Secret) -> Tensor:
    """Copy a secret into a SharedTensor in place, so that views of it see it. Raises SecretError for a plain target."""
    if not isinstance(target, SharedTensor):
        raise SecretError(
            f"a secret cannot be written into a plain tensor of shape {tuple(target.shape)}; share that tensor first"
        )
    if torch.broadcast_shapes(target.shape, source.shape) != target.shape:  # type: ignore[no-untyped-call]
        raise InvalidTensor(f"a value of shape {tuple(source.shape)} does not fit in place into {tuple(target.shape)}")
    held = secret(target)
    payload = held.payload
    source.settle()
    if source.fraction_bits > held.fraction_bits:
        if held.viewed:
            raise UnsupportedOperation(
                "a fraction cannot be written in place into a view of whole numbers; clone it first"
            )
        held.adopt(Secret(held.session, source.fraction_bits, payload=torch.empty_like(payload)))
        payload = held.payload
    terms = source.at_bits(held.fraction_bits)
    missing = payload.ndim - terms.ndim
    payload.copy_(terms.reshape(terms.shape[0], *(1,) * missing, *terms.shape[1:]))
    return target


def in_place(operation: Callable[..., SharedTensor]) -> Callable[..., Tensor]:
    """The in-place version of an out-of-place handler."""

    def handler(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(x, SharedTensor):
            return write(x, secret(next(a for a in args if isinstance(a, SharedTensor))))
        return write(x, secret(operation(x, *args, **kwargs)))

    return handler
