"""Products of secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from encml.mpc.parties import Parties, known
from encml.ring.kernels import Adding
from encml.ring.kernels.elementwise import and_masked
from encml.ring.layout import room

Bilinear = Callable[[Tensor, Tensor], Tensor]
"""Any map over Z_2^64 that is linear in each argument: element-wise product, matmul, convolution, ..."""


def product(parties: Parties, f: Bilinear, x: Tensor, y: Tensor) -> Tensor:
    """f(x, y) of two payloads, as additive rows (P, *shape of f). No communication.

    z_i = f(x_i, y_i + y_{i+1}) + f(x_{i+1}, y_i)
    (Araki et al. 2016; the sum over i has each of the nine cross terms once). z_i depends on party i's
    shares and is not to be sent as it is: follow with ``Parties.reshare`` (1 round, 8 B per output and party,
    whatever the inner dimension) or ``truncate_rows``, which mask it. The sum is formed of the smaller factor, which
    changes nothing: z_i = f(x_i + x_{i+1}, y_i) + f(x_i, y_{i+1}) is the same.
    """
    rows: Tensor | None = None
    for i, (one, two) in enumerate(_factors(parties, x, y)):
        if rows is not None and isinstance(f, Adding):
            f.onto(rows[i].zero_(), *one)
            f.onto(rows[i], *two)
            continue
        first = f(*one)
        if isinstance(f, Adding):
            f.onto(first, *two)
            rows = first[None]
            if parties.here > 1:
                rows = room(parties.here, first)
                rows[0].copy_(first)
            continue
        if rows is None:
            rows = room(parties.here, first)
        torch.add(first, f(*two), out=rows[i])
    return known(rows)


def _factors(parties: Parties, x: Tensor, y: Tensor) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """For every party here the two pairs whose products add up to its row."""
    for (own_x, next_x), (own_y, next_y) in zip(parties.held(x), parties.held(y), strict=True):
        if own_x.numel() < own_y.numel():
            yield (own_x + next_x, own_y), (own_x, next_y)
        else:
            yield (own_x, own_y + next_y), (next_x, own_y)


def and_bits(parties: Parties, x: Tensor, y: Tensor, operation: str) -> Tensor:
    """x AND y of two XOR-shared payloads of words. 1 round, 1 bit per gate and party.

    z_i = (x_i & y_i) ^ (x_i & y_{i+1}) ^ (x_{i+1} & y_i), then masked and reshared (Araki et al. 2016).
    """
    left, right = ([share.ravel() for share in payload.numpy()] for payload in (x, y))
    payload, masks = parties.mask_rows(x.shape[1:])
    for i, own, previous in masks:
        following = (i + 1) % len(left)
        and_masked(left[i], left[following], right[i], right[following], own, previous)
    return parties.pass_back(payload, operation)
