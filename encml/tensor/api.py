"""The doors: share and reveal, and nothing else."""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import register_optimizer_step_pre_hook

from encml.errors import InvalidTensor, SecretError
from encml.mpc.session import Session, current_session
from encml.mpc.sharing import share_from
from encml.tensor.functions import FUNCTIONS
from encml.tensor.functions.traps import refuse_optimizer
from encml.tensor.handlers.norms import FINER, finer_bits, prepare
from encml.tensor.handlers.updates import PATIENT
from encml.tensor.public import term
from encml.tensor.saving import rebuild, reduce
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor
from encml.tensor.table import HANDLERS

Module = TypeVar("Module", bound=nn.Module)

SharedTensor.handlers.update(HANDLERS)
SharedTensor.functions.update(FUNCTIONS)
SharedTensor.patient = PATIENT
copyreg.pickle(SharedTensor, reduce)
torch.serialization.add_safe_globals([rebuild])
register_optimizer_step_pre_hook(refuse_optimizer)


@overload
def share(value: Tensor, *, session: Session | None = None, owner: int = 0) -> SharedTensor: ...
@overload
def share(value: Module, *, session: Session | None = None, owner: int = 0) -> Module: ...
def share(value: Tensor | nn.Module, *, session: Session | None = None, owner: int = 0) -> SharedTensor | nn.Module:
    """Secret-share a tensor, or a copy of a module with its parameters and floating-point buffers shared.

    value: a real tensor with |v| < 2^(62 - 2f), or an nn.Module. With real parties, every party calls this with a
        tensor of the same shape and dtype; only the contents at party ``owner`` matter.
    session: whose parties hold the shares; default: the current session, in-process if none was opened.
    owner: the rank of the party that knows the value.

    Returns a leaf SharedTensor of the same shape that requires grad if ``value`` does. Its logical dtype follows the
    value's: float32 and float64 stay, other floats become the default dtype, integers of any width int64 (exact, with
    no fraction bits: class labels, indices, counts), bools bool. Where it meets a float the result is a float.

    1 round, 8 bytes an element in all; a module: 1 round for every four million parameters, and in evaluation mode 30
    more, in which all batch normalisations work out what they divide by. Reveals nothing to the other parties. Raises
    InvalidTensor for NaN, infinity, an unfit dtype or out of range.
    """
    session = session or current_session()
    if isinstance(value, nn.Module):
        return _share_module(value, session, owner)
    if not isinstance(value, Tensor):
        raise InvalidTensor(f"share() takes a torch.Tensor or nn.Module, found {type(value).__name__}")
    if isinstance(value, SharedTensor):
        raise InvalidTensor("share() got a SharedTensor, which is shared already")
    plain = value.detach()
    integers = term(plain, session.fraction_bits)[0] if session.parties.plays(owner) else None
    with session.whole():
        payload = share_from(session.parties, owner, integers, tuple(plain.shape))
    bits = session.fraction_bits if plain.is_floating_point() else 0
    return SharedTensor(Secret(session, bits, payload=payload), logical_dtype(plain), value.requires_grad)


def reveal(x: SharedTensor, to: int | None = None) -> Tensor:
    """Open a SharedTensor to every party, or to party ``to`` alone: see ``SharedTensor.reveal``."""
    if not isinstance(x, SharedTensor):
        raise SecretError(f"reveal() takes a SharedTensor, found {type(x).__name__}")
    return x.reveal(to)


def logical_dtype(plain: Tensor) -> torch.dtype:
    """The dtype that a plain tensor has once it is shared."""
    if plain.is_floating_point():
        return plain.dtype if plain.dtype in (torch.float32, torch.float64) else torch.get_default_dtype()
    return torch.bool if plain.dtype == torch.bool else torch.int64


_TOGETHER = 1 << 22
"""Parameters of a module are shared in the same round until they have so many elements: more cost memory."""


def _share_module(module: nn.Module, session: Session, owner: int) -> nn.Module:
    shared = copy.deepcopy(module)
    # Tied parameters and buffers stay tied.
    plain: dict[int, Tensor] = {}
    for part in shared.modules():
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if isinstance(tensor, nn.Parameter) or tensor.is_floating_point():
                plain.setdefault(id(tensor), tensor)
    secrets = _shared_together(plain, session, owner)
    for part in shared.modules():
        for name, parameter in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(part, name, secrets[id(parameter)])
        for name, buffer in list(part.named_buffers(recurse=False, remove_duplicate=False)):
            if id(buffer) in secrets:
                setattr(part, name, secrets[id(buffer)])
                if name == "running_var":
                    _keep_finer(secrets[id(buffer)], buffer, owner)
    if not shared.training:
        norms = [part for part in shared.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
        with session.whole(), session.ledger.operation("prepare"):
            prepare(session, [(part.running_var, part.weight, part.eps) for part in norms])
    return shared


def _shared_together(plain: dict[int, Tensor], session: Session, owner: int) -> dict[int, Any]:
    """Each tensor shared, parameters as such; small ones in the same round."""
    secrets: dict[int, Any] = {}
    jobs: dict[int, Callable[[], SharedTensor]] = {}
    waiting = 0

    def run() -> None:
        for key, secret in zip(jobs, session.parties.together(*jobs.values()), strict=True):
            tensor = plain[key]
            secrets[key] = nn.Parameter(secret, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else secret
        jobs.clear()

    with session.whole():
        for key, tensor in plain.items():
            jobs[key] = partial(share, tensor.detach(), session=session, owner=owner)
            waiting += tensor.numel()
            if waiting >= _TOGETHER:
                run()
                waiting = 0
        run()
    return secrets


def _keep_finer(shared: SharedTensor, plain: Tensor, owner: int) -> None:
    """Share more digits of a running variance: the inverse root of a small one would magnify what is cut off."""
    session = shared.session
    bits, integers = finer_bits(session), None
    if session.parties.plays(owner):
        integers = torch.round(plain.detach().double() * 2.0**bits).to(torch.int64)
    with session.whole():
        payload = share_from(session.parties, owner, integers, tuple(plain.shape))
    shared._secret.keep(FINER, Secret(session, bits, payload=payload))
