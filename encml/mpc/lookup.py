"""Public tables read by secret bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from encml.mpc.parties import Parties, known
from encml.net.transport import PARTIES, Message


def lookup(parties: Parties, planes: Tensor, n: int, tables: Sequence[Sequence[int]], operation: str) -> list[Tensor]:
    """For each public table of k integers, sum_k bit_k table_k over Z_2^64: a payload (S, n) each.

    ``planes`` are XOR-shared bits (S, k, words) of n elements. With one-hot bits that reads the tables. 2 rounds,
    8 k + 16 T bytes an element in all for T tables, where conversion bit by bit (``comparison.to_arithmetic``) takes
    24 k: the sum over the bits is local before anything is reshared.

    bit = a ^ b with a known to party r, b to parties r + 1 and r + 2, so that bit = b + (1 - 2b) a. Party r shares
    every a between those two (round 1); then they know each sum's terms between them, and reshare it (round 2).
    """
    r = parties.next_lead()
    shape = (planes.shape[1], n)
    matrix = torch.tensor([list(table) for table in tables], dtype=torch.int64)
    masks = parties.common(r - 1, shape)
    rest = None
    if parties.plays(r):
        rest = _bits(known(parties.share(planes, r)) ^ known(parties.share(planes, r + 1)), n) - known(masks)
    (got,) = parties.net.exchange([Message(r, (r + 1) % PARTIES, rest, shape, torch.int64)], operation)
    left = right = None
    if parties.plays(r + 1):
        b = _bits(known(parties.share(planes, r + 2)), n)
        left = matrix @ ((1 - 2 * b) * known(got if rest is None else rest)).add_(b)
    if parties.plays(r + 2):
        b = _bits(known(parties.share(planes, r + 2)), n)
        right = matrix @ ((1 - 2 * b) * known(masks))
    payload = parties.reshare_pair(r + 1, left, right, (len(tables), n), operation)
    return list(payload.unbind(1))


def _bits(planes: Tensor, n: int) -> Tensor:
    """Planes (k, words) as int64 zeros and ones (k, n)."""
    octets = planes.contiguous().numpy().view(np.uint8)
    return torch.from_numpy(np.unpackbits(octets, axis=1, count=n, bitorder="little").astype(np.int64))
