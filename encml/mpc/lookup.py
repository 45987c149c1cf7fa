"""Public tables read by secret bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from encml.mpc.comparison import hand_over
from encml.mpc.parties import Parties, known
from encml.ring.kernels import matmul
from encml.ring.kernels.elementwise import NOTHING, Words, bits_less, turned_less


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
    bits, rest = planes.numpy(), None
    masks = parties.masks(r - 1, shape)
    if parties.plays(r):
        rest = np.empty(shape, np.int64)
        parts = parties.words(bits, r), parties.words(bits, r + 1)
        bits_less(*parts, n, known(masks).reshape(-1), rest.reshape(-1))
    rest = hand_over(parties, r, rest, shape, operation)
    left, right = (
        matmul(matrix, torch.from_numpy(_turned(parties.words(bits, r + 2), known(parts), plus)))
        if parties.plays(party)
        else None
        for party, parts, plus in ((r + 1, rest, True), (r + 2, masks, False))
    )
    payload = parties.reshare_pair(r + 1, left, right, (len(tables), n), operation)
    return list(payload.unbind(1))


def _turned(planes: Words, parts: Words, plus: bool) -> Words:
    """(1 - 2b) parts (k, n) for the bits b of planes, or with ``plus`` b + (1 - 2b) parts."""
    turned = np.empty_like(parts)
    turned_less(planes, parts.shape[1], parts.reshape(-1), plus, NOTHING, turned.reshape(-1))
    return turned
