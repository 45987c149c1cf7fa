"""torch.save and torch.load of SharedTensors: every party keeps its own shares in a file of its own.

    torch.save(model.state_dict(), f"model-{rank}.pt")         # at every party
    model.load_state_dict(torch.load(f"model-{rank}.pt"))      # in a later session of the same cluster

A file holds what this process has and nothing more: with real parties two of the three shares, uniformly random
numbers without the other parties' files. **In one process it holds all three shares: whoever has the file has the
values.** Never a plain value, and no session's keys.

torch.load reads it also with its default weights_only=True: only tensors, integers and strings are in it. It needs a
current session in which this process is the party that saved, with the same fraction bits, and all parties load
together, in the same order.

Only torch.save pickles a SharedTensor. Whatever else would (pickle.dumps, copy.copy, a multiprocessing queue, a data
loader's workers, torch.distributed's object collectives) is on its way to another process, where shares of different
parties might meet, and gets a SecretError.
"""

from __future__ import annotations

import hashlib
import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from encml.errors import InvalidTensor, ProtocolError
from encml.mpc.parties import Parties, known
from encml.mpc.session import Session, current_session
from encml.net.transport import PARTIES
from encml.ring.layout import in_memory_order
from encml.tensor.handlers.norms import FINER
from encml.tensor.refusals import refuse_pickling
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor

_DIGEST_WORDS = 2
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float64, torch.int64, torch.bool)}


def reduce(x: SharedTensor) -> tuple[Any, ...]:
    """What torch.save writes for a SharedTensor. A pending product is settled first. SecretError to anyone else.

    Views and tied tensors are saved one by one, each with memory of its own.
    """
    if not _called_by_torch_save():
        refuse_pickling()
    held, session = x._secret, x.session
    with session.whole(), session.ledger.operation("save"):
        payload = in_memory_order(lambda p: p.clone(memory_format=torch.contiguous_format), held.payload).cpu()
    is_parameter = isinstance(x, nn.Parameter)
    local, bits = list(session.parties.local), session.fraction_bits
    finer: Secret | None = held.fact(FINER)
    more = (None, 0) if finer is None else (finer.terms.clone().cpu(), finer.fraction_bits)
    return rebuild, (payload, held.fraction_bits, str(x.dtype), x.requires_grad, is_parameter, local, bits, *more)


def rebuild(
    payload: Tensor,
    fraction_bits: int,
    dtype: str,
    requires_grad: bool,
    is_parameter: bool,
    local: list[int],
    session_bits: int,
    finer: Tensor | None = None,
    finer_bits: int = 0,
) -> Tensor:
    """What torch.load makes of it, in the current session.

    1 round, 16 bytes a party, in which neighbours make sure that they loaded the same; another for the finer digits of
    a running variance. Raises InvalidTensor if the file is another party's, of other fraction bits or malformed,
    ProtocolError if parties loaded different tensors.
    """
    session = current_session()
    _check(session, payload, fraction_bits, dtype, local, session_bits)
    if finer is not None and (finer.dtype, finer.shape) != (payload.dtype, payload.shape):
        raise InvalidTensor(
            f"the file holds finer digits of {finer.dtype} and shape {tuple(finer.shape)} for shares of shape "
            f"{tuple(payload.shape)}"
        )
    with session.whole(), session.ledger.operation("load"):
        _check_neighbours(session.parties, payload, f"{fraction_bits} {dtype} {tuple(payload.shape[1:])}")
        if finer is not None:
            _check_neighbours(session.parties, finer, f"{finer_bits} finer {tuple(finer.shape[1:])}")
    device = session.parties.device
    held = Secret(session, fraction_bits, payload=payload.to(device))
    if finer is not None:
        held.keep(FINER, Secret(session, finer_bits, payload=finer.to(device)))
    x: Tensor = SharedTensor(held, _DTYPES[dtype], requires_grad)
    return nn.Parameter(x, requires_grad) if is_parameter else x


def _check(
    session: Session, payload: Tensor, fraction_bits: int, dtype: str, local: list[int], session_bits: int
) -> None:
    if list(session.parties.local) != local:
        raise InvalidTensor(
            f"the file was saved by a process with the parties {local}; this one has {list(session.parties.local)}: "
            "every party loads what it saved itself, inside a session of its rank"
        )
    if session_bits != session.fraction_bits:
        raise InvalidTensor(
            f"the file was saved at {session_bits} fraction bits; the current session has {session.fraction_bits}"
        )
    whole = payload.dtype == torch.int64 and payload.shape[:1] == (session.parties.shares_here,)
    if not whole or payload.device.type != "cpu" or dtype not in _DTYPES or not 0 <= fraction_bits <= session_bits:
        raise InvalidTensor(
            f"the file holds no shares that fit: found {payload.dtype} of shape {tuple(payload.shape)} on "
            f"{payload.device}, {fraction_bits} fraction bits, for {dtype}"
        )


def _check_neighbours(parties: Parties, payload: Tensor, what: str) -> None:
    """Parties i and i + 1 both hold x_{i+1}. i sends a digest of it under a key from their common stream: it tells
    party i + 1 nothing but whether they hold the same."""
    keys = [parties.common(stream, (_DIGEST_WORDS,)) for stream in range(PARTIES)]
    ours, theirs = [], []
    for rank, (first, second) in zip(parties.local, parties.held(payload), strict=True):
        ours.append(_digest(known(keys[rank]), second, what))
        theirs.append(_digest(known(keys[(rank - 1) % PARTIES]), first, what))
    if not torch.equal(parties.net.rotate(torch.stack(ours), +1, "load"), torch.stack(theirs)):
        raise ProtocolError(
            "the parties loaded shares that do not belong together: files of the same moment are needed, of every party"
        )


def _digest(key: Tensor, share: Tensor, what: str) -> Tensor:
    digest = hashlib.blake2b(what.encode(), key=key.numpy().tobytes(), digest_size=8 * _DIGEST_WORDS)
    digest.update(share.contiguous().numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.int64)


def _called_by_torch_save() -> bool:
    """PyTorch's pickler does not say who it is, so its frame is looked for; where PyTorch calls it something else,
    saving is refused."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == torch.serialization.__name__:
            return True
        frame = frame.f_back
    return False
