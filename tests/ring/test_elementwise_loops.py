"""The compiled loops of element-wise protocols, each against the formula in its docstring, in NumPy or Python."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from encml.ring.bits import words_for
from encml.ring.kernels import elementwise as kernels
from encml.ring.kernels.elementwise import NOTHING, Octets, Words

SIZES = [0, 1, 7, 63, 64, 65, 130, 64 * 32, 64 * 33 + 5]
"""Around the ends of bytes, words and blocks of words."""
Array = npt.NDArray[Any]
Draw = Callable[..., Array]


@pytest.fixture
def draw() -> Draw:
    """Integers over the whole range of a dtype, always the same."""
    source = np.random.default_rng(5)

    def drawn(n: int, dtype: type[np.integer[Any]] = np.int64) -> Array:
        info = np.iinfo(dtype)
        return source.integers(info.min, info.max, n, dtype, endpoint=True)

    return drawn


def bits_of(packed: Array, n: int) -> Words:
    """The first n bits of planes or packed bits, as int64."""
    return np.unpackbits(packed.view(np.uint8), count=n, bitorder="little").astype(np.int64)


def packed_bytes(n: int) -> int:
    return -(-n // 8)


def test_masked_terms(draw: Draw) -> None:
    terms, own, previous, x, y, next_y = (draw(100) for _ in range(6))
    result = own.copy()
    kernels.add_masked(terms, result, previous)
    assert np.array_equal(result, own + terms - previous)
    result = own.copy()
    kernels.and_masked(x, terms, y, next_y, result, previous)
    assert np.array_equal(result, own ^ (x & y) ^ (x & next_y) ^ (terms & y) ^ previous)
    kernels.and_with(x, y, own, result)
    assert np.array_equal(result, x & y ^ own)


@pytest.mark.parametrize("bits", [1, 2, 31, 32, 33, 63, 64])
@pytest.mark.parametrize("n", SIZES)
def test_planes_are_the_numbers_one_bit_at_a_time(n: int, bits: int, draw: Draw) -> None:
    first, second, mask = draw(n), draw(n), draw(bits * words_for(n))
    planes = draw(bits * words_for(n))
    for addend, masks in [(second, mask), (NOTHING, mask), (second, NOTHING), (NOTHING, NOTHING)]:
        kernels.planes_of(first, addend, masks, bits, planes)
        numbers = (first + addend if len(addend) else first).view(np.uint64)
        expected = np.zeros((bits, words_for(n) * 64), np.uint8)
        for bit in range(bits):
            expected[bit, :n] = numbers >> np.uint64(bit) & np.uint64(1)
        words = np.packbits(expected, axis=1, bitorder="little").reshape(-1).view(np.int64)
        assert np.array_equal(planes, words ^ masks if len(masks) else words), "padding bits are 0, but for the mask"


@pytest.mark.parametrize("layout", ["apart", "around a middle"])
@pytest.mark.parametrize("k", [2, 3, 4, 7, 63])
def test_a_level_of_a_carry_tree(k: int, layout: str, draw: Draw) -> None:
    """Of three parties' rows together: group 2j + 1 after group 2j, and an odd last one as it is."""
    words, pairs = 3, k // 2
    if layout == "apart":
        g, p = ([draw(k * words) for _ in range(3)] for _ in range(2))
        first_g, first_p, step = 0, 0, 1
    else:
        g = p = [draw((2 * k - 1) * words) for _ in range(3)]
        first_g, first_p, step = k - 1, k - 1, -1

    def plane(rows: list[Array], place: int) -> Array:
        parts = [row.reshape(-1, words)[place] for row in rows]
        return parts[0] ^ parts[1] ^ parts[2]

    mask = [draw((2 * pairs - 1) * words) for _ in range(3)]
    own = [row.copy() for row in mask]
    for i in range(3):
        after, before = (i + 1) % 3, (i - 1) % 3
        kernels.carry_gates(
            g[i], g[after], p[i], p[after], first_g, first_p, step, pairs, words, own[i], mask[before]
        )  # fmt: skip
    high_g, low_g, high_p, low_p = (
        [plane(rows, start + (2 * j + up) * way) for j in range(pairs)]
        for rows, start, way, up in [
            (g, first_g, 1, 1),
            (g, first_g, 1, 0),
            (p, first_p, step, 1),
            (p, first_p, step, 0),
        ]
    )
    middle = pairs - 1
    for j in range(pairs):
        assert np.array_equal(plane(own, middle + j), high_p[j] & low_g[j])
        if j:
            assert np.array_equal(plane(own, middle - j), high_p[j] & low_p[j])

    kept, odd = pairs + k % 2, k % 2
    states = [draw((2 * kept - 1) * words) for _ in range(3)]
    for i, state in enumerate(states):
        state.reshape(-1, words)[odd : odd + 2 * pairs - 1] = own[i].reshape(-1, words)
        kernels.carry_merge(g[i], p[i], first_g, first_p, step, k, words, state)
    for j in range(pairs):
        assert np.array_equal(plane(states, kept - 1 + j), high_g[j] ^ high_p[j] & low_g[j])
        if j:
            assert np.array_equal(plane(states, kept - 1 - j), high_p[j] & low_p[j])
    if odd:
        assert np.array_equal(plane(states, 2 * kept - 2), plane(g, first_g + k - 1))
        assert np.array_equal(plane(states, 0), plane(p, first_p + (k - 1) * step))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rows", [1, 3])
def test_bits_times_numbers(n: int, rows: int, draw: Draw) -> None:
    planes = [draw(rows * words_for(n)) for _ in range(2)]
    b, c = (np.concatenate([bits_of(row, n) for row in np.split(plane, rows)]) for plane in planes)
    values, mask, result = draw(rows * n), draw(rows * n), draw(rows * n)
    kernels.bits_less(*planes, n, mask, result)
    assert np.array_equal(result, (b ^ c) - mask)
    for plus in (False, True):
        for less in (mask, NOTHING):
            kernels.turned_less(planes[0], n, values, plus, less, result)
            assert np.array_equal(result, (1 - 2 * b) * values + plus * b - (mask if len(less) else 0))


@pytest.mark.parametrize("n", SIZES)
def test_chosen_numbers(n: int, draw: Draw) -> None:
    plane, other = draw(words_for(n)), draw(words_for(n))
    t, u = bits_of(plane, n), bits_of(other, n)
    x, y, part, product, mask, result = (draw(n) for _ in range(6))
    for addend in (y, NOTHING):
        total = x + y if len(addend) else x
        parts = np.concatenate([t ^ u, (t ^ u) * total, (1 - (t ^ u)) * total])
        for rows in (2, 3):
            masks, dealt = draw(rows * n), draw(rows * n)
            kernels.parts_less(plane, other, x, addend, masks, dealt)
            assert np.array_equal(dealt, parts[: rows * n] - masks)
    kernels.chosen_part(plane, x, y, part, product, mask, result)
    assert np.array_equal(result, np.where(t, mask + x - part * (x + y), product + part * (x + y)))
    for both in (False, True):
        for less in (mask, NOTHING):
            kernels.chosen_less(plane, x, y, both, part, product, less, result)
            expected = t * (x + both * y) + (1 - 2 * t) * (product + part * y)
            assert np.array_equal(result, expected - mask if len(less) else expected)


@pytest.mark.parametrize("width", [0, 1, 5])
@pytest.mark.parametrize("lengths", [[], [1], [3, 0, 2], [0]])
def test_sums_of_runs(lengths: list[int], width: int, draw: Draw) -> None:
    terms, mask = draw(sum(lengths) * width), draw(len(lengths) * width)
    result = draw(len(lengths) * width)
    kernels.run_sums_less(terms, np.array(lengths, np.int64), mask, result)
    stops = np.cumsum([0, *lengths])
    table = terms.reshape(sum(lengths), width)
    sums = [table[a:b].sum(0) for a, b in pairwise(stops)]
    assert np.array_equal(result, np.concatenate([NOTHING, *sums]).astype(np.int64) - mask)


@pytest.mark.parametrize("addends", [0, 1, 2])
@pytest.mark.parametrize("minus", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_signs_of_sums(n: int, minus: bool, addends: int, draw: Draw) -> None:
    total, mask, constant = draw(n), draw(packed_bytes(n), np.uint8), 2**62 + 2**16 - 1
    added = [draw(n) for _ in range(addends)]
    opened: Octets = np.empty(packed_bytes(n), np.uint8)
    expected = sum(added, -total if minus else total) + constant
    kernels.open_sign(*added, *[NOTHING] * (2 - addends), minus, constant, mask, total, opened)
    assert np.array_equal(total, expected)
    assert np.array_equal(opened, np.packbits(expected >= 0, bitorder="little") ^ mask)


@pytest.mark.parametrize(
    ("dtype", "m"), [(np.int16, 1), (np.int16, 16), (np.int32, 17), (np.int64, 33), (np.int64, 48)]
)
@pytest.mark.parametrize("n", SIZES)
def test_pieces_of_a_truncation(n: int, dtype: type[np.integer[Any]], m: int, draw: Draw) -> None:
    e, d, a, b = (draw(packed_bytes(n), np.uint8) for _ in range(4))
    bit_e, bit_d, bit_a, bit_b = (bits_of(bits, n) for bits in (e, d, a, b))
    c, dealt = draw(n, dtype), draw(n, dtype)
    kernels.deal_product(a, b, c, dealt)
    assert np.array_equal(dealt, (bit_a * bit_b).astype(dtype) - c)

    x, mask, result = draw(n), draw(n), draw(n)
    quotient = (x.view(np.uint64) >> np.uint64(m)).view(np.int64)
    wide = c.astype(np.int64)
    for factor in (1, -48):
        kernels.shifted_first(x, m, e, d, a, c, factor, mask, result)
        product = bit_e * bit_d + (1 - 2 * bit_e) * (bit_d * bit_a + (1 - 2 * bit_d) * wide) - 1
        assert np.array_equal(result, factor * (quotient + (product << (64 - m)) - 2 ** (62 - m)) - mask)
        kernels.shifted_second(x, m, e, d, b, c, factor, mask, result)
        product = (1 - 2 * bit_d) * (bit_e * bit_b + (1 - 2 * bit_e) * wide)
        assert np.array_equal(result, factor * (quotient + (product << (64 - m))) - mask)
