"""The inner loops of element-wise protocols, compiled: one pass over memory for each step of a party.

Arrays are flat and contiguous: numbers int64, bits as planes (int64, 64 elements a word) or packed (uint8, 8 elements a
byte), the lowest bit first. An array that is written is no other one's memory, so that the compiler finds vector
instructions; where it also is read, the docstring says ``+=``, ``^=`` or names it on both sides. An array of length 0
stands for zeros where that is said. For a bit b, (1 - 2b) v is (v ^ -b) + b, and b v is v & -b. Indices are unsigned,
for signed ones could count from the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from encml.ring.kernels.compiling import compiled

Words = npt.NDArray[np.int64]
Octets = npt.NDArray[np.uint8]
Integers = npt.NDArray[Any]
"""int16, int32 or int64: numbers modulo a power of two that fits."""


NOTHING: Words = np.empty(0, np.int64)
"""An array of length 0, for zeros."""

_LANES = 32
"""Blocks of 64 x 64 bits transposed at one time, side by side: together half of an L1 cache."""
_ONE, _EIGHT, _WORD = np.uint64(1), np.uint64(8), np.uint64(64)


@compiled
def add_masked(terms: Words, own: Words, previous: Words) -> None:
    """own += terms - previous"""
    for k in range(len(own)):
        own[k] += terms[k] - previous[k]


@compiled
def and_masked(x: Words, next_x: Words, y: Words, next_y: Words, own: Words, previous: Words) -> None:
    """own ^= (x & y) ^ (x & next_y) ^ (next_x & y) ^ previous"""
    for k in range(len(own)):
        own[k] ^= (x[k] & (y[k] ^ next_y[k])) ^ (next_x[k] & y[k]) ^ previous[k]


@compiled
def and_with(x: Words, y: Words, mask: Words, to: Words) -> None:
    """to = (x & y) ^ mask"""
    for k in range(len(to)):
        to[k] = (x[k] & y[k]) ^ mask[k]


# Bit planes -----------------------------------------------------------------------------------------------------


@compiled
def planes_of(first: Words, second: Words, mask: Words, bits: int, to: Words) -> None:
    """to (bits, words) = the planes of the low ``bits`` bits of first + second, XOR mask (bits, words).

    ``second`` and ``mask`` may be of length 0. Blocks of 64 x 64 bits are transposed by halving (Warren 2013, Hacker's
    Delight, section 7-3), so many side by side that every step of it is one on vectors.
    """
    n, lanes = len(first), np.uint64(_LANES)
    words = (n + 63) // 64
    block = np.empty(64 * _LANES, np.uint64)
    a, b, masks, planes = first.view(np.uint64), second.view(np.uint64), mask.view(np.uint64), to.view(np.uint64)
    for start in range(0, words, _LANES):
        here = np.uint64(min(_LANES, words - start))
        for lane in range(here):
            origin = (np.uint64(start) + lane) * _WORD
            count = min(_WORD, np.uint64(n) - origin)
            if len(b):
                for i in range(count):
                    block[i * lanes + lane] = a[origin + i] + b[origin + i]
            else:
                for i in range(count):
                    block[i * lanes + lane] = a[origin + i]
            for i in range(count, _WORD):
                block[i * lanes + lane] = np.uint64(0)
        _transpose(block)
        for bit in range(np.uint64(bits)):
            place = bit * np.uint64(words) + np.uint64(start)
            if len(masks):
                for lane in range(here):
                    planes[place + lane] = block[bit * lanes + lane] ^ masks[place + lane]
            else:
                for lane in range(here):
                    planes[place + lane] = block[bit * lanes + lane]


@compiled
def _transpose(block: npt.NDArray[np.uint64]) -> None:
    width = np.uint64(32)
    pattern = np.uint64(0x00000000FFFFFFFF)
    while width:
        span = width * np.uint64(_LANES)
        base = np.uint64(0)
        for _ in range(np.uint64(32) // width):
            for q in range(span):
                low, high = block[base + q], block[base + span + q]
                swap = ((low >> width) ^ high) & pattern
                block[base + q] = low ^ (swap << width)
                block[base + span + q] = high ^ swap
            base += span + span
        width >>= _ONE
        pattern ^= pattern << width


@compiled
def carry_gates(
    g: Words, next_g: Words, p: Words, next_p: Words, first_g: int, first_p: int, step: int, pairs: int, words: int,
    own: Words, previous: Words,
) -> None:  # fmt: skip
    """One party's terms of a level of a carry tree, of groups 2j and 2j + 1 for every one of the pairs j.

    Generate bits of group j are plane first_g + j of g, propagate bits plane first_p + j * step of p. ``own`` has
    2 * pairs - 1 planes: own[pairs - 1 + j] ^= (p[2j + 1] AND g[2j]) ^ previous and, but for j = 0,
    own[pairs - 1 - j] ^= (p[2j + 1] AND p[2j]) ^ previous, with x AND y as in ``and_masked``.
    """
    size, middle = np.uint64(words), pairs - 1
    for j in range(pairs):
        high, low = np.uint64((first_p + (2 * j + 1) * step) * words), np.uint64((first_g + 2 * j) * words)
        up = np.uint64((middle + j) * words)
        for k in range(size):
            x, y = p[high + k], g[low + k]
            own[up + k] ^= (x & (y ^ next_g[low + k])) ^ (next_p[high + k] & y) ^ previous[up + k]
        if j:
            low, down = np.uint64((first_p + 2 * j * step) * words), np.uint64((middle - j) * words)
            for k in range(size):
                x, y = p[high + k], p[low + k]
                own[down + k] ^= (x & (y ^ next_p[low + k])) ^ (next_p[high + k] & y) ^ previous[down + k]


@compiled
def carry_merge(g: Words, p: Words, first_g: int, first_p: int, step: int, k: int, words: int, to: Words) -> None:
    """What the next level of a carry tree needs, from a level's gates in the middle of ``to``, as above.

    to[middle + j] ^= g[2j + 1]; the last of an odd number k of groups is taken over as it is, to either end of ``to``.
    """
    size, middle = np.uint64(words), (k + 1) // 2 - 1
    for j in range(k // 2):
        high, up = np.uint64((first_g + 2 * j + 1) * words), np.uint64((middle + j) * words)
        for q in range(size):
            to[up + q] ^= g[high + q]
    if k % 2:
        last, rest = np.uint64((first_g + k - 1) * words), np.uint64((first_p + (k - 1) * step) * words)
        up = np.uint64(2 * middle * words)
        for q in range(size):
            to[up + q] = g[last + q]
            to[q] = p[rest + q]


# Bits times values ----------------------------------------------------------------------------------------------


@compiled
def bits_less(first: Words, second: Words, n: int, mask: Words, to: Words) -> None:
    """to (rows, n) = b - mask, for the bits b of the planes (rows, words) of first ^ second."""
    words = (n + 63) // 64
    for row in range(len(first) // max(1, words)):
        for w in range(words):
            word = first[np.uint64(row * words + w)] ^ second[np.uint64(row * words + w)]
            base = np.uint64(row * n + w * 64)
            for j in range(min(_WORD, np.uint64(n - w * 64))):
                to[base + j] = ((word >> np.int64(j)) & 1) - mask[base + j]


@compiled
def parts_less(first: Words, second: Words, x: Words, y: Words, mask: Words, to: Words) -> None:
    """to (2 or 3, n) = b, b (x + y), and (1 - b) (x + y), less mask, for the bits b of the plane first ^ second.

    ``y`` may be of length 0.
    """
    n = np.uint64(len(x))
    three = np.uint64(len(to)) > n + n
    for w in range(len(first)):
        word, base = first[np.uint64(w)] ^ second[np.uint64(w)], np.uint64(w * 64)
        count = min(_WORD, n - base)
        place = base + n
        for j in range(count):
            to[base + j] = ((word >> np.int64(j)) & 1) - mask[base + j]
        if len(y):
            for j in range(count):
                to[place + j] = ((x[base + j] + y[base + j]) & -((word >> np.int64(j)) & 1)) - mask[place + j]
        else:
            for j in range(count):
                to[place + j] = (x[base + j] & -((word >> np.int64(j)) & 1)) - mask[place + j]
        if three:
            place += n
            if len(y):
                for j in range(count):
                    to[place + j] = ((x[base + j] + y[base + j]) & (((word >> np.int64(j)) & 1) - 1)) - mask[place + j]
            else:
                for j in range(count):
                    to[place + j] = (x[base + j] & (((word >> np.int64(j)) & 1) - 1)) - mask[place + j]


@compiled
def turned_less(plane: Words, n: int, values: Words, plus: bool, mask: Words, to: Words) -> None:
    """to (rows, n) = (1 - 2b) values - mask, or with ``plus`` b + (1 - 2b) values - mask, for the bits b of ``plane``.

    ``mask`` may be of length 0.
    """
    words, twice = (n + 63) // 64, np.int64(plus)
    for row in range(len(plane) // max(1, words)):
        for w in range(words):
            word, base = plane[np.uint64(row * words + w)], np.uint64(row * n + w * 64)
            count = min(_WORD, np.uint64(n - w * 64))
            if len(mask):
                for j in range(count):
                    bit = (word >> np.int64(j)) & 1
                    to[base + j] = (values[base + j] ^ -bit) + (bit << twice) - mask[base + j]
            else:
                for j in range(count):
                    bit = (word >> np.int64(j)) & 1
                    to[base + j] = (values[base + j] ^ -bit) + (bit << twice)


@compiled
def chosen_less(
    plane: Words, own: Words, b: Words, both: bool, part: Words, part_of_product: Words, mask: Words, to: Words
) -> None:
    """to = t own + (1 - 2t) (part_of_product + part b) - mask for the bits t of ``plane``; ``both``: own + b for own.

    ``mask`` may be of length 0.
    """
    with_b = -np.int64(both)
    for w in range(len(plane)):
        word, base = plane[np.uint64(w)], np.uint64(w * 64)
        count = min(_WORD, np.uint64(len(to)) - base)
        if len(mask):
            for j in range(count):
                bit, other = (word >> np.int64(j)) & 1, b[base + j]
                product = part_of_product[base + j] + part[base + j] * other
                here = ((own[base + j] + (other & with_b)) & -bit) + (product ^ -bit) + bit
                to[base + j] = here - mask[base + j]
        else:
            for j in range(count):
                bit, other = (word >> np.int64(j)) & 1, b[base + j]
                product = part_of_product[base + j] + part[base + j] * other
                to[base + j] = ((own[base + j] + (other & with_b)) & -bit) + (product ^ -bit) + bit


@compiled
def chosen_part(plane: Words, own: Words, other: Words, part: Words, kept: Words, left: Words, to: Words) -> None:
    """to = kept + part b where a bit of ``plane`` is 0, left + own - part b where it is 1, with b = own + other."""
    for w in range(len(plane)):
        word, base = plane[np.uint64(w)], np.uint64(w * 64)
        for j in range(min(_WORD, np.uint64(len(to)) - base)):
            chosen = -((word >> np.int64(j)) & 1)
            product = part[base + j] * (own[base + j] + other[base + j])
            zero, one = kept[base + j] + product, left[base + j] + own[base + j] - product
            to[base + j] = zero ^ ((zero ^ one) & chosen)


@compiled
def run_sums_less(terms: Words, lengths: Words, mask: Words, to: Words) -> None:
    """to (runs, width) = the sums of runs of so many rows of ``terms`` (rows, width), less mask (runs, width)."""
    width = np.uint64(len(to) // max(1, len(lengths)))
    source = place = np.uint64(0)
    for length in lengths:
        for k in range(width):
            to[place + k] = -mask[place + k]
        for _ in range(length):
            for k in range(width):
                to[place + k] += terms[source + k]
            source += width
        place += width


# Truncation -----------------------------------------------------------------------------------------------------


@compiled
def _word(packed: Octets, w: int) -> np.int64:
    """Bytes 8w to 8w + 7 of packed bits, as a word; what is beyond the end is 0."""
    word, start = np.uint64(0), np.uint64(w) * _EIGHT
    for k in range(min(_EIGHT, np.uint64(len(packed)) - start)):
        word |= np.uint64(packed[start + k]) << (k * _EIGHT)
    return np.int64(word)


@compiled
def open_sign(first: Words, second: Words, minus: bool, constant: int, mask: Octets, total: Words, to: Octets) -> None:
    """total = first + second + constant + total, or - total with ``minus``; to (packed) = [total >= 0] ^ mask.

    ``first`` and ``second``, or ``second`` alone, may be of length 0.
    """
    turn, more = -np.int64(minus), np.int64(constant) + np.int64(minus)
    words = (len(total) + 63) // 64
    for w in range(words):
        base = np.uint64(w * 64)
        count = min(_WORD, np.uint64(len(total)) - base)
        if len(second):
            for j in range(count):
                total[base + j] = (total[base + j] ^ turn) + more + first[base + j] + second[base + j]
        elif len(first):
            for j in range(count):
                total[base + j] = (total[base + j] ^ turn) + more + first[base + j]
        else:
            for j in range(count):
                total[base + j] = (total[base + j] ^ turn) + more
        word = np.uint64(0)
        for j in range(count):
            word |= (~np.uint64(total[base + j]) >> np.uint64(63)) << j
        start = np.uint64(w) * _EIGHT
        for k in range(min(_EIGHT, np.uint64(len(to)) - start)):
            to[start + k] = np.uint8(word >> (k * _EIGHT)) ^ mask[start + k]


@compiled
def deal_product(a: Octets, b: Octets, mask: Integers, to: Integers) -> None:
    """to = a b - mask, of packed bits a and b, modulo what fits in the type of ``mask`` and ``to``."""
    for w in range((len(to) + 63) // 64):
        word, base = _word(a, w) & _word(b, w), np.uint64(w * 64)
        for j in range(min(_WORD, np.uint64(len(to)) - base)):
            to[base + j] = ((word >> np.int64(j)) & 1) - mask[base + j]


@compiled
def shifted_first(
    x: Words, m: int, e: Octets, d: Octets, a: Octets, c: Integers, factor: int, mask: Words, to: Words
) -> None:
    """to = factor (floor(x / 2^m) + 2^(64-m) (ed + (1-2e) (da + (1-2d) c) - 1) - 2^(62-m)) - mask, x as unsigned."""
    shift, back, offset = np.uint64(m), np.int64(64 - m), np.int64(1) << np.int64(62 - m)
    for w in range((len(to) + 63) // 64):
        word_e, word_d, word_a, base = _word(e, w), _word(d, w), _word(a, w), np.uint64(w * 64)
        for j in range(min(_WORD, np.uint64(len(to)) - base)):
            at = np.int64(j)
            bit_e, bit_d = (word_e >> at) & 1, (word_d >> at) & 1
            inner = (bit_d & (word_a >> at)) + (np.int64(c[base + j]) ^ -bit_d) + bit_d
            product = (bit_e & bit_d) + (inner ^ -bit_e) + bit_e
            quotient = np.int64(np.uint64(x[base + j]) >> shift)
            to[base + j] = factor * (quotient + ((product - 1) << back) - offset) - mask[base + j]


@compiled
def shifted_second(
    x: Words, m: int, e: Octets, d: Octets, b: Octets, c: Integers, factor: int, mask: Words, to: Words
) -> None:
    """to = factor (floor(x / 2^m) + 2^(64-m) (1-2d) (eb + (1-2e) c)) - mask, x as an unsigned number."""
    shift, back = np.uint64(m), np.int64(64 - m)
    for w in range((len(to) + 63) // 64):
        word_e, word_d, word_b, base = _word(e, w), _word(d, w), _word(b, w), np.uint64(w * 64)
        for j in range(min(_WORD, np.uint64(len(to)) - base)):
            at = np.int64(j)
            bit_e, bit_d = (word_e >> at) & 1, (word_d >> at) & 1
            inner = (bit_e & (word_b >> at)) + (np.int64(c[base + j]) ^ -bit_e) + bit_e
            product = (inner ^ -bit_d) + bit_d
            quotient = np.int64(np.uint64(x[base + j]) >> shift)
            to[base + j] = factor * (quotient + (product << back)) - mask[base + j]
