"""The doors: share and reveal, and nothing else."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from encml.errors import InvalidTensor, SecretError
from encml.mpc.session import Session, current_session
from encml.mpc.sharing import open_to, open_to_all, share_from
from encml.ring.fixed import decode, encode
from encml.tensor.functions import FUNCTIONS
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor, secret
from encml.tensor.table import HANDLERS

Module = TypeVar("Module", bound=nn.Module)

SharedTensor.handlers.update(HANDLERS)
SharedTensor.functions.update(FUNCTIONS)


@overload
def share(value: Tensor, *, session: Session | None = None, owner: int = 0) -> SharedTensor: ...
@overload
def share(value: Module, *, session: Session | None = None, owner: int = 0) -> Module: ...
def share(value: Tensor | nn.Module, *, session: Session | None = None, owner: int = 0) -> SharedTensor | nn.Module:
    """Secret-share a tensor, or a copy of a module with its parameters and floating-point buffers shared.

    value: a real tensor (float16 to float64; integers and bools are encoded as numbers of the default dtype) with
        |v| < 2^(62 - 2f), or an nn.Module. With real parties, every party calls this with a tensor of the same shape
        and dtype; only the contents at party ``owner`` matter.
    session: whose parties hold the shares; default: the current session, in-process if none was opened.
    owner: the rank of the party that knows the value.

    Returns a leaf SharedTensor of the same shape that requires grad if ``value`` does. 1 round, 8 bytes an element in
    all. Reveals nothing to the other parties. Raises InvalidTensor for NaN, infinity, an unfit dtype or out of range.
    """
    session = session or current_session()
    if isinstance(value, nn.Module):
        return _share_module(value, session, owner)
    if not isinstance(value, Tensor):
        raise InvalidTensor(f"share() takes a torch.Tensor or nn.Module, found {type(value).__name__}")
    if isinstance(value, SharedTensor):
        raise InvalidTensor("share() got a SharedTensor, which is shared already")
    dtype = value.dtype if value.dtype in (torch.float32, torch.float64) else torch.get_default_dtype()
    plain = value.detach()
    integers = encode(plain, session.fraction_bits) if session.parties.plays(owner) else None
    payload = share_from(session.parties, owner, integers, tuple(plain.shape))
    return SharedTensor(
        Secret(session, session.fraction_bits, payload=payload),
        dtype,
        value.requires_grad and value.is_floating_point(),
    )


def reveal(x: SharedTensor, to: int | None = None) -> Tensor:
    """Open a SharedTensor: its values become known to every party, or with ``to`` to that party alone.

    Returns a plain tensor of the same shape and logical dtype. With ``to``, parties other than it get a tensor of
    zeros. 1 round, 8 bytes an element and party (in all, with ``to``), after settling a pending product. Gradients
    flow back through it into the secret graph as public values.
    """
    if not isinstance(x, SharedTensor):
        raise SecretError(f"reveal() takes a SharedTensor, found {type(x).__name__}")
    result: Tensor = _Reveal.apply(x, to)  # type: ignore[no-untyped-call]
    return result


class _Reveal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: SharedTensor, to: int | None) -> Tensor:
        ctx.session, ctx.dtype = x.session, x.dtype
        held, parties = secret(x), x.session.parties
        with x.session.ledger.operation("reveal"):
            payload = held.payload
            if to is None:
                return decode(open_to_all(parties, payload), held.fraction_bits, x.dtype)
            opened = open_to(parties, payload, to)
        if opened is None:
            return torch.zeros(x.shape, dtype=x.dtype)
        return decode(opened, held.fraction_bits, x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[SharedTensor, None]:  # type: ignore[override]
        return SharedTensor(Secret.of_public(ctx.session, gradient), ctx.dtype), None


def _share_module(module: nn.Module, session: Session, owner: int) -> nn.Module:
    shared = copy.deepcopy(module)
    seen: dict[int, SharedTensor] = {}

    def convert(tensor: Tensor) -> SharedTensor:
        # Tied parameters stay tied.
        if id(tensor) not in seen:
            seen[id(tensor)] = share(tensor, session=session, owner=owner)
        return seen[id(tensor)]

    for part in shared.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            known = seen.get(id(parameter))
            if not isinstance(known, nn.Parameter):
                known = nn.Parameter(convert(parameter).detach(), parameter.requires_grad)
                seen[id(parameter)] = known
            setattr(part, name, known)
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.is_floating_point():
                setattr(part, name, convert(buffer))
    return shared


SharedTensor.reveal = reveal  # type: ignore[method-assign]
