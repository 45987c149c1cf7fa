"""Into shares and out of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from encml.mpc.parties import Parties, known
from encml.net.transport import PARTIES, Message


def public(parties: Parties, value: Tensor) -> Tensor:
    """A public int64 tensor as a payload (S, *shape): x_0 = value, x_1 = x_2 = 0. No communication, no secrecy."""
    zero = torch.zeros_like(value)
    return parties.assemble([value, zero, zero]).to(parties.device)


def share_from(parties: Parties, owner: int, value: Tensor | None, shape: Sequence[int]) -> Tensor:
    """Share what party ``owner`` knows; elsewhere ``value`` is None. 1 round, 8 B per element in all.

    With o = owner: x_o = PRG_{o-1}, x_{o+1} = value - x_o, x_{o+2} = 0. Party o + 1 gets a masked value, party o + 2
    knows only the mask, so nothing is revealed.
    """
    shape = tuple(shape)
    mask = parties.common(owner - 1, shape)
    rest = None if value is None else value.cpu() - known(mask)
    destination = (owner + 1) % PARTIES
    (received,) = parties.net.exchange([Message(owner % PARTIES, destination, rest, shape, torch.int64)], "share")
    middle = rest if rest is not None else received
    zero = torch.zeros(shape, dtype=torch.int64)
    return parties.assemble([mask, middle, zero], owner).to(parties.device)


def open_to_all(parties: Parties, payload: Tensor) -> Tensor:
    """Reveal x (*shape) to all three parties: party i sends x_i to party i + 1. 1 round, 8 B per element and party."""
    payload = payload.cpu()
    if parties.here == PARTIES:
        parties.net.rotate(payload, +1, "reveal")
        return payload.sum(0)
    missing = parties.net.rotate(payload[:1], +1, "reveal")
    return payload.sum(0) + missing[0]


def open_to(parties: Parties, payload: Tensor, receiver: int) -> Tensor | None:
    """Reveal x (*shape) to party ``receiver`` alone; None elsewhere. 1 round, 8 B per element in all."""
    payload, index = payload.cpu(), (receiver + 2) % PARTIES
    shape = tuple(payload.shape[1:])
    share = parties.share(payload, index) if parties.plays(index) else None
    (missing,) = parties.net.exchange([Message(index, receiver, share, shape, torch.int64)], "reveal")
    if missing is None:
        return None
    return missing + known(parties.share(payload, receiver)) + known(parties.share(payload, receiver + 1))
