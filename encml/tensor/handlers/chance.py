"""Random choices that are public: the same at all parties, known to all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from encml.errors import InvalidTensor
from encml.mpc.session import Session
from encml.tensor.handlers.common import write
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor


def coin_flips(session: Session, shape: tuple[int, ...], chance: float) -> Tensor:
    """A public bool tensor that is True with probability ``chance``, to 2^-32: the same at every party.

    PyTorch's generator is asked which flips these are: flips made from the same state of it, as when a checkpoint is
    computed again, come out the same. What they are it does not decide. Cost: see ``PublicCoins.choice``.
    """
    if not 0 <= chance <= 1:
        raise InvalidTensor(f"a probability is between 0 and 1, found {chance}")
    if chance in (0, 1):
        return torch.full(shape, chance == 1)
    return _words(session, shape) < round(chance * 2**32)


def coin_uniform(session: Session, shape: tuple[int, ...]) -> Tensor:
    """Public multiples of 2^-32 in [0, 1), float64, otherwise as ``coin_flips``."""
    return _words(session, shape).double() * 2.0**-32


def _words(session: Session, shape: tuple[int, ...]) -> Tensor:
    """Public integers in [0, 2^32)."""
    ticket = int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device="cpu"))
    return session.coins.choice(ticket, "coins").words(shape, torch.int32).to(torch.int64) + 2**31


def bernoulli_(x: SharedTensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """bernoulli_.float, in which PyTorch's composite dropouts end: public flips. A generator is refused."""
    if generator is not None:
        raise InvalidTensor("bernoulli_: the parties flip their coins together; leave the generator out")
    return write(x, Secret.of_public(x.session, coin_flips(x.session, tuple(x.shape), p)), x.dtype)
