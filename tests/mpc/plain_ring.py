"""Slow, obvious arithmetic over Z_2^64 with Python integers, and ways to make shares, for the tests in this folder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from encml.mpc.parties import Parties
from encml.net.local import LocalTransport

RING = st.integers(-(2**63), 2**63 - 1)
SHAPES = [(), (0,), (1,), (7,), (64,), (65,), (3, 0, 2), (2, 3), (2, 1, 5)]


def wrap(value: int) -> int:
    """The signed representative of a class modulo 2^64."""
    value %= 2**64
    return value - 2**64 if value >> 63 else value


def ring(values: Sequence[int]) -> Tensor:
    return torch.tensor([wrap(value) for value in values], dtype=torch.int64)


def in_process(seed: int = 1) -> Parties:
    return Parties(LocalTransport(), seed)


def random_ring(shape: Sequence[int], seed: int) -> Tensor:
    """Uniform ring elements; reproducible."""
    generator = torch.Generator().manual_seed(seed)
    halves = torch.randint(0, 2**32, (2, *shape), generator=generator)
    return (halves[0] << 32) | halves[1]


def split(parties: Parties, values: Tensor, seed: int = 0) -> Tensor:
    """A payload of ``values`` with uniform shares x_0 and x_1, made without the code under test."""
    first, second = random_ring((2, *values.shape), seed)
    return parties.assemble([first, second, values - first - second])


def split_bits(parties: Parties, flags: Tensor, seed: int = 0) -> Tensor:
    """A payload (S, words) of the bit plane of ``flags`` (any shape), made without the code under test."""
    plane = torch.zeros(-(-flags.numel() // 64), dtype=torch.int64)
    for i, flag in enumerate(flags.reshape(-1).tolist()):
        plane[i // 64] |= wrap(int(flag) << (i % 64))
    first, second = random_ring((2, len(plane)), seed)
    return parties.assemble([first, second, plane ^ first ^ second])


def opened(payload: Tensor) -> Tensor:
    """The sum of the three shares of an in-process payload."""
    assert len(payload) == 3
    return payload[0] + payload[1] + payload[2]


def opened_bits(plane: Tensor, shape: Sequence[int]) -> list[int]:
    """The bits of an in-process payload of one plane, flat."""
    words = (plane[0] ^ plane[1] ^ plane[2]).tolist()
    n = 1
    for size in shape:
        n *= size
    return [words[i // 64] >> (i % 64) & 1 for i in range(n)]
