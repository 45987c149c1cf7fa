"""Does a client's vector have a norm that the ring can hold? A yes-or-no check on shares.

Why: ||x||^2 is computed in Z_2^64. A dishonest client could share entries such as 2^32, whose squares vanish modulo
2^64, and pass for a short vector. So the norm is first bounded by the size of random projections, which a square's
wrap-around cannot fool (the idea: Rothblum et al. 2023, "PINE: Efficient verification of a Euclidean norm bound of a
secret-shared vector"; the parameters and the proof below are ours).

**The check.** After the vectors x_i (integers, read as -2^63 <= x < 2^63) are fixed, the parties draw K = 96 public
directions r in {-1, 0, 1}^d, each entry 0 with probability 1/2, else +1 or -1 alike. Client i is accepted if |<r, x_i>
mod 2^64| <= B for every r, where B = 6N and N = ``NORM_LIMIT`` is the largest norm that an honest client sends. Only
that one bit per client is opened.

**An honest client passes** but for 2 * 96 * exp(-36) < 2^-44. One entry r_j has E exp(t r_j) = cosh^2(t/2) <=
exp(t^2/4), hence P(|<r, x>| > s ||x||) <= 2 exp(-s^2), here with s = 6; and |<r, x>| <= sqrt(d) N does not wrap.

**Accepted means ||x|| <= 4B = 24N**, but for 2^-40, so that ||x||^2 <= (24N)^2 <= 2^61 does not wrap:

1. An entry beyond 2B. Fix all of r but r_j: the projection is a + r_j x_j modulo 2^64. If r_j = 0 and r_j = 1 (or -1)
   both gave a value in [-B, B], then x_j would be within 2B of 0 modulo 2^64. So either only r_j = 0 passes, or only
   some of +1 and -1 do: each row passes with probability 1/2 at most, all of them with 2^-96.
2. All entries within 2B. Then |<r, x>| <= 2Bd < 2^63 for d <= ``MAX_DIMENSION``, so that nothing wraps. Z = <r, x>^2
   has E Z = ||x||^2/2 and E Z^2 = 3 (E Z)^2 - (1/4) sum x_j^4 <= 3 (E Z)^2. By Paley and Zygmund P(Z > E Z/8) >=
   (7/8)^2/3 > 0.255. If ||x|| > 24N, then E Z/8 > 36N^2 = B^2: each row passes with probability 0.745 at most, all of
   them with 0.745^96 < 2^-40.

This holds for every attempt, since nobody knows r before the vectors are fixed. It presumes that the parties follow the
protocol and that the client dealt them consistent shares (see encml.federated.aggregation).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from encml.errors import InvalidTensor
from encml.mpc.comparison import negative
from encml.mpc.multiplication import and_bits
from encml.mpc.parties import Parties
from encml.mpc.sharing import public
from encml.ring.bits import WORD
from encml.ring.devices import beside
from encml.ring.kernels import matmul
from encml.ring.prg import KeyStream, fresh_key

DIRECTIONS = 96
"""K: two one-sided comparisons each make 192 bits a client, three whole words."""
SQUARE_BITS = 61
"""Accepted vectors have ||x||^2 <= 2^61."""
NORM_LIMIT = math.isqrt(2**SQUARE_BITS) // 24
"""N, in ring units: the largest norm that an honest client sends, about 2^25.9."""
PROJECTION_LIMIT = 6 * NORM_LIMIT
"""B."""
MAX_DIMENSION = 2**32


def accepted(parties: Parties, vectors: Tensor) -> Tensor:
    """Which vectors of a payload (S, n, d) have a norm that does not wrap around: bool (n,), known to all parties.

    Reveals that one bit of each vector; it is True for every norm up to ``NORM_LIMIT`` but for 2^-44, and False for
    every norm beyond 24 ``NORM_LIMIT`` but for 2^-40. 18 rounds and 13 kB a vector in all, whatever d.
    Raises InvalidTensor for d beyond ``MAX_DIMENSION``.
    """
    return ~_open_flags(parties, beyond(parties, vectors, _public_key(parties)))


def beyond(parties: Parties, vectors: Tensor, key: bytes) -> Tensor:
    """Which vectors of a payload (S, n, d) ``accepted`` would refuse, unopened: bit 0 of XOR-shared words (S, n).

    ``key``: 16 bytes, the same at all parties, that nobody knew before the vectors were fixed. 16 rounds and 4.4 kB a
    vector and party, whatever d. Reveals nothing. Raises InvalidTensor for d beyond ``MAX_DIMENSION``.
    """
    count, dimension = vectors.shape[1:]
    if dimension > MAX_DIMENSION:
        raise InvalidTensor(f"vectors of {dimension} entries: the norm check is proven up to {MAX_DIMENSION}")
    ways = beside(vectors, directions(key, dimension))
    along = matmul(vectors.reshape(-1, dimension), ways).view(len(vectors), count, DIRECTIONS)
    limit = public(parties, torch.full((count, DIRECTIONS), PROJECTION_LIMIT, dtype=torch.int64))
    # A value near 2^63 wraps one of the two differences and not the other; at least one is always negative.
    outside = negative(parties, torch.stack([limit - along, limit + along], 2), operation="norm check")
    return _any(parties, outside.plane.reshape(len(vectors), count, 2 * DIRECTIONS // WORD))


def directions(key: bytes, dimension: int) -> Tensor:
    """The public directions (d, K) under ``key``: int64 of -1, 0, 1 with probabilities 1/4, 1/2, 1/4."""
    bits = KeyStream(key).words((dimension, 2 * DIRECTIONS // WORD)).view(torch.uint8).numpy()
    flips = np.unpackbits(bits, axis=1).view(np.int8).reshape(dimension, 2, DIRECTIONS)
    return torch.from_numpy(flips[:, 0] - flips[:, 1]).to(torch.int64)


def _public_key(parties: Parties) -> bytes:
    """16 bytes that no party, and no client, knew before: the sum of fresh contributions by all three. 1 round."""
    own = torch.stack([KeyStream(fresh_key()).words((2,)) for _ in parties.local])
    return parties.open_rows(own, "norm check").numpy().tobytes()


def _any(parties: Parties, words: Tensor) -> Tensor:
    """OR of all bits of XOR-shared words (S, n, 3), in bit 0 of (S, n) words; the other bits are cleared. 8 rounds."""
    joined = words[:, :, 0]
    for other in range(1, words.shape[2]):
        joined = _either(parties, joined, words[:, :, other])
    width = WORD
    while width > 1:
        width //= 2
        joined = _either(parties, joined, joined >> width)
    return joined & 1


def _either(parties: Parties, x: Tensor, y: Tensor) -> Tensor:
    """x | y = x ^ y ^ (x & y) of two XOR-shared payloads of words. 1 round, 8 B a word and party."""
    return x ^ y ^ and_bits(parties, x, y, "norm check")


def _open_flags(parties: Parties, bits: Tensor) -> Tensor:
    """Reveal XOR-shared single bits (S, n) to all parties: bool (n,). 1 round, 8 B a bit and party."""
    missing = parties.net.rotate(bits[: parties.here], +1, "norm check")
    return bits[0] ^ bits[1] ^ missing[0] == 1
