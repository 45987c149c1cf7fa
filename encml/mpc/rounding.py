"""Whole numbers next to a secret, exactly.

x has b fraction bits, |x| <= 2^62 - 2^(b+2) as an integer. t = truncate(x, b) is one of the whole numbers next to it
(see ``truncate``), so the remainder r = x - 2^b t is within (-2^b, 2^b), and a comparison on few bits tells which one:

    floor(x) = t - [r < 0]

To the nearest, halves to the even one, as IEEE 754 and PyTorch round: with t = truncate(x + 1/2, b + 1), so that 2t is
an even number with r = x + 1/2 - 2t within (-2, 2), the result is

    2t - 2 + [r > -1] + [r >= 0] + [r > 1]
"""

from __future__ import annotations

import torch
from torch import Tensor

from encml.mpc.comparison import negative, to_arithmetic
from encml.mpc.parties import Parties
from encml.mpc.sharing import public
from encml.mpc.truncation import truncate


def floor(parties: Parties, payload: Tensor, fraction_bits: int, operation: str = "floor") -> Tensor:
    """The largest whole numbers <= a payload's values, as integers. 10 rounds, 20.5 B a party and element at 16 bits.

    fraction_bits: 1 to 48.
    """
    below = truncate(parties, payload, fraction_bits, operation)
    rest = payload - (below << fraction_bits)
    return below - to_arithmetic(parties, negative(parties, rest, fraction_bits + 1, operation), operation)


def nearest(parties: Parties, payload: Tensor, fraction_bits: int, operation: str = "round") -> Tensor:
    """The nearest whole numbers, halves to even, as integers. 11 rounds, 55 B a party and element at 16 bits.

    fraction_bits: 1 to 47.
    """
    one = 1 << fraction_bits
    shape = payload.shape[1:]
    moved = payload + public(parties, torch.full(shape, one >> 1))
    half = truncate(parties, moved, fraction_bits + 1, operation)
    rest = moved - (half << (fraction_bits + 1))
    # Asked as [r <= -1], [r < 0], [r <= 1]: of each, what is left to 1 is the bit above.
    limits = torch.tensor([1 - one, 0, one + 1]).reshape(-1, *(1,) * len(shape)).expand(-1, *shape)
    asked = negative(parties, rest[:, None] - public(parties, limits), fraction_bits + 3, operation)
    return (
        2 * half
        + public(parties, torch.ones(shape, dtype=torch.int64))
        - to_arithmetic(parties, asked, operation).sum(1)
    )
