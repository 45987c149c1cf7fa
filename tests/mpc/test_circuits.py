"""Circuits on bit planes and tables read by bits, against Python's integers; rounds and bytes as said."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ring import RING, in_process, opened, opened_bits, random_ring, ring, split, split_bits
from torch import Tensor

from encml.mpc.circuits import any_above, bits_at, carries, carry, flipped, one_hot
from encml.mpc.lookup import lookup
from encml.mpc.parties import Parties


def planes_of(parties: Parties, rows: list[list[int]]) -> Tensor:
    """Bits by plane and element as planes (S, k, words)."""
    return torch.stack([split_bits(parties, torch.tensor(row), seed) for seed, row in enumerate(rows)], 1)


def read(planes: Tensor, n: int) -> list[list[int]]:
    return [opened_bits(planes[:, k], (n,)) for k in range(planes.shape[1])]


@given(st.lists(RING, min_size=1, max_size=70), st.integers(0, 63), st.data())
@settings(max_examples=60, deadline=None)
def test_bits_at(values: list[int], low: int, data: st.DataObject) -> None:
    parties, count = in_process(), data.draw(st.integers(1, min(8, 64 - low)))
    with parties.ledger.measure() as spent:
        planes = bits_at(parties, split(parties, ring(values), low), low, count, "test")
    assert read(planes, len(values)) == [[v >> (low + k) & 1 for v in values] for k in range(count)]
    levels = [math.ceil(math.log2(width)) for width in (low, count - 1) if width]
    assert spent[0].rounds == 2 + max(levels, default=0) + (low > 0 and count > 1)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 46])
def test_or_prefixes(k: int) -> None:
    rows = (random_ring((k, 70), 3) & random_ring((k, 70), 4) & random_ring((k, 70), 5) & 1).tolist()
    parties = in_process()
    planes = planes_of(parties, rows)
    with parties.ledger.measure() as spent:
        found = any_above(parties, planes, "test")
    assert read(found, 70) == [[int(any(rows[j][i] for j in range(level, k))) for i in range(70)] for level in range(k)]
    assert spent[0].rounds == math.ceil(math.log2(k))


@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_one_hot(k: int, masked: bool) -> None:
    rows, mask = (random_ring((k, 70), 3) & 1).tolist(), (random_ring((70,), 9) & 1).tolist()
    parties = in_process()
    with parties.ledger.measure() as spent:
        found = one_hot(
            parties, planes_of(parties, rows), "test", split_bits(parties, torch.tensor(mask)) if masked else None
        )
    numbers = [sum(rows[j][i] << j for j in range(k)) for i in range(70)]
    expected = [
        [int(number == place and (not masked or on)) for number, on in zip(numbers, mask, strict=True)]
        for place in range(2**k)
    ]
    assert read(found, 70) == expected
    assert spent[0].rounds == math.ceil(math.log2(k + masked))


@pytest.mark.parametrize("k", [1, 2, 7, 16])
def test_every_carry(k: int) -> None:
    x, y = random_ring((70,), 1), random_ring((70,), 2)
    parties = in_process()
    bits = [[[v >> j & 1 for v in values.tolist()] for j in range(k)] for values in (x, y)]
    g = planes_of(parties, [[a & b for a, b in zip(*pair, strict=True)] for pair in zip(*bits, strict=True)])
    p = planes_of(parties, [[a ^ b for a, b in zip(*pair, strict=True)] for pair in zip(*bits, strict=True)])
    expected = [
        [((a % 2 ** (j + 1)) + (b % 2 ** (j + 1))) >> (j + 1) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        for j in range(k)
    ]
    assert read(carries(parties, g, p, "test")[0], 70) == expected
    assert opened_bits(carry(parties, g, p, "test"), (70,)) == expected[-1]


def test_not() -> None:
    parties = in_process()
    planes = planes_of(parties, [[0, 1, 1], [1, 0, 0]])
    assert read(flipped(parties, planes), 3) == [[1, 0, 0], [0, 1, 1]]
    assert read(planes, 3) == [[0, 1, 1], [1, 0, 0]]


@given(st.integers(1, 70), st.integers(1, 9), st.lists(st.lists(RING, min_size=9, max_size=9), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_look_up(n: int, k: int, tables: list[list[int]]) -> None:
    """Any bits, one-hot or not: the sums of the entries whose bits are 1, modulo 2^64."""
    rows, tables = (random_ring((k, n), 3) & 1).tolist(), [table[:k] for table in tables]
    parties = in_process()
    planes = planes_of(parties, rows)
    with parties.ledger.measure() as spent:
        found = lookup(parties, planes, n, tables, "test")
    for payload, table in zip(found, tables, strict=True):
        assert torch.equal(opened(payload), ring([sum(table[j] * rows[j][i] for j in range(k)) for i in range(n)]))
    assert (spent[0].rounds, spent[0].bytes) == (2, (8 * k + 16 * len(tables)) * n)
