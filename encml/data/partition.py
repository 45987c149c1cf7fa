"""Splitting a data set over simulated clients.

The generator here decides who holds which public training image in a simulation. It protects nothing, so it is
numpy's seeded one, for the same split on every run; masks, keys and noise never come from it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from encml.errors import DataError


def split_iid(examples: int, clients: int, seed: int) -> list[Tensor]:
    """``examples`` indices in random order, dealt to ``clients``: sizes differ by at most one, nobody is empty.

    Returns one int64 tensor of indices for each client; every index is in exactly one of them. Raises DataError
    where there are fewer examples than clients.
    """
    sizes = _sizes(examples, clients)
    order = np.random.default_rng(seed).permutation(examples)
    return _tensors(np.split(order, np.cumsum(sizes)[:-1]))


def split_dirichlet(labels: Tensor, clients: int, alpha: float, seed: int) -> list[Tensor]:
    """Non-IID by label (Hsu, Qi and Brown 2019): client k's label mix is q_k ~ Dirichlet(alpha * p).

    p is the mix of the whole data set. A small ``alpha`` gives clients of one or two classes, a large one IID
    clients. Clients are as large as in ``split_iid``: only the mix differs. Examples are drawn without replacement,
    so where a class runs out the rest is drawn from the classes left, in the proportions of q_k; the clients served
    last are therefore closer to what remained than to their own draw.

    ``labels``: int64 (N,), classes from 0. Returns and raises as ``split_iid``; alpha <= 0 raises DataError.
    """
    if not alpha > 0:
        raise DataError(f"the Dirichlet split needs alpha > 0, found {alpha}")
    sizes = _sizes(len(labels), clients)
    generator = np.random.default_rng(seed)
    by_class = [generator.permutation(np.flatnonzero(labels.numpy() == c)) for c in np.unique(labels.numpy())]
    left = np.array([len(members) for members in by_class])
    prior = left / left.sum()
    clients_indices = []
    for size in sizes:
        taken = _draw(generator, int(size), generator.dirichlet(alpha * prior), left)
        start = left - taken
        clients_indices.append(np.concatenate([m[s:e] for m, s, e in zip(by_class, start, left, strict=True)]))
        left = start
    return _tensors(clients_indices)


def _draw(generator: np.random.Generator, size: int, mix: np.ndarray, left: np.ndarray) -> np.ndarray:
    """How many examples of each class a client of ``size`` takes, by ``mix``, at most ``left`` of each."""
    taken = np.zeros_like(left)
    while taken.sum() < size:
        room = left - taken
        weights = np.where(room > 0, mix, 0.0)
        if weights.sum() <= 0:  # every class of this client's mix has run out
            weights = room.astype(float)
        drawn = generator.multinomial(size - taken.sum(), weights / weights.sum())
        taken += np.minimum(drawn, room)
    return taken


def _sizes(examples: int, clients: int) -> np.ndarray:
    if not 1 <= clients <= examples:
        raise DataError(f"{examples} examples cannot be split over {clients} clients: each needs at least one")
    sizes = np.full(clients, examples // clients)
    sizes[: examples % clients] += 1
    return sizes


def _tensors(parts: list[np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(part.astype(np.int64)) for part in parts]
