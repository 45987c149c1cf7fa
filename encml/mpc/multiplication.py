"""Products of secrets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from encml.mpc.parties import Parties

Bilinear = Callable[[Tensor, Tensor], Tensor]
"""Any map over Z_2^64 that is linear in each argument: element-wise product, matmul, convolution, ..."""


def product(parties: Parties, f: Bilinear, x: Tensor, y: Tensor) -> Tensor:
    """f(x, y) of two payloads, as zero-masked additive rows (P, *shape of f). No communication.

    z_i = f(x_i, y_i + y_{i+1}) + f(x_{i+1}, y_i) + alpha_i,   alpha_0 + alpha_1 + alpha_2 = 0
    (Araki et al. 2016, section 3.2; the sum over i has each of the nine cross terms once). Follow with
    ``Parties.reshare`` (1 round, 8 B per output and party, whatever the inner dimension), or with a truncation.
    """
    terms = [
        f(own_x, own_y + next_y) + f(next_x, own_y)
        for (own_x, next_x), (own_y, next_y) in zip(parties.held(x), parties.held(y), strict=True)
    ]
    return torch.stack(terms) + parties.zero(terms[0].shape)


def to_rows(parties: Parties, payload: Tensor) -> Tensor:
    """A payload as additive rows, x_i for party i, a view. Not masked: only ever to be added to masked rows."""
    return payload[: parties.here]


def and_bits(parties: Parties, x: Tensor, y: Tensor, operation: str) -> Tensor:
    """x AND y of two XOR-shared payloads of words. 1 round, 1 bit per gate and party.

    z_i = (x_i & y_i) ^ (x_i & y_{i+1}) ^ (x_{i+1} & y_i) ^ alpha_i, then reshared (Araki et al. 2016, section 3.1).
    """
    terms = [
        (own_x & (own_y ^ next_y)) ^ (next_x & own_y)
        for (own_x, next_x), (own_y, next_y) in zip(parties.held(x), parties.held(y), strict=True)
    ]
    return parties.reshare(torch.stack(terms) ^ parties.zero_bits(terms[0].shape), operation)
