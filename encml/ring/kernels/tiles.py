"""The innermost loops of products over Z_2^64: tiles of the result that stay in the registers of the processor.

Written as LLVM vectors of eight int64, because the compiler does not find this form by itself: a tile of 4 x 4 vectors
is one multiplication and one addition a vector and step, and a load for every four of them. With AVX-512 it runs at the
rate of the multiplier (vpmullq: 8 products a cycle); LLVM puts it together from what other processors have.

Both kernels are addressed through tables of offsets, so that the same code multiplies matrices and moves windows over
images. Where a tile reaches beyond the last row or column, it repeats that one and writes it twice the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.extending import intrinsic

LANES = 8
"""Elements of a vector."""
_SIDE = 4 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 2
"""16 vectors of sums and 5 of factors fill the 32 registers of AVX-512 as far as is useful; half of it elsewhere."""
ROWS, VECTORS = _SIDE, _SIDE
"""A tile of ``gather``."""
DOT_ROWS, DOT_COLUMNS = _SIDE, _SIDE
"""A tile of ``dots``."""

_WORD = ir.IntType(64)
_VECTOR = ir.VectorType(_WORD, LANES)
_FLAGS = ir.VectorType(ir.IntType(1), LANES)
_NONE = ir.Constant(_VECTOR, [0] * LANES)
_STEPS = ir.Constant(_VECTOR, list(range(LANES)))
_ALIGNED = ir.Constant(ir.IntType(32), 8)
_Value = Any
_intrinsic: Callable[[Any], Any] = intrinsic


class _Code:
    """What both kernels need of the code that is being written."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.builder = context, builder

    def pointer(self, kind: Any, value: _Value) -> _Value:
        """The memory of an array."""
        return self.context.make_array(kind)(self.context, self.builder, value).data

    def at(self, pointer: _Value, index: _Value) -> _Value:
        return self.builder.gep(pointer, [index], source_etype=_WORD)

    def word(self, pointer: _Value, index: _Value) -> _Value:
        return self.builder.load(self.at(pointer, index), typ=_WORD)

    def splat(self, value: _Value, kind: Any = _VECTOR) -> _Value:
        blank = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(blank, value, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(one, blank, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

    def clamped(self, count: int, limit: _Value) -> list[_Value]:
        """0, 1, ... ``count`` - 1, none above ``limit`` - 1."""
        last = self.builder.sub(limit, ir.Constant(_WORD, 1))
        numbers = [ir.Constant(_WORD, i) for i in range(count)]
        return [self.least(i, last) for i in numbers]

    def first(self, lanes: _Value) -> _Value:
        """Flags of the first ``lanes`` places of a vector."""
        return self.builder.icmp_signed("<", _STEPS, self.splat(lanes))

    def masked_load(self, pointer: _Value, flags: _Value) -> _Value:
        kind = ir.FunctionType(_VECTOR, [pointer.type, ir.IntType(32), _FLAGS, _VECTOR])
        load = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.masked.load.v8i64.p0")
        return self.builder.call(load, [pointer, _ALIGNED, flags, _NONE])

    def vectors(self, pointers: list[_Value], masks: list[_Value] | None) -> list[_Value]:
        """What is at each place; where masks say so, with zeros for what is not read."""
        if masks is None:
            return [self.builder.load(pointer, align=8, typ=_VECTOR) for pointer in pointers]
        return [self.masked_load(pointer, mask) for pointer, mask in zip(pointers, masks, strict=True)]

    def least(self, x: _Value, y: _Value) -> _Value:
        return self.builder.select(self.builder.icmp_signed("<", x, y), x, y)

    def masked_store(self, value: _Value, pointer: _Value, flags: _Value) -> None:
        kind = ir.FunctionType(ir.VoidType(), [_VECTOR, pointer.type, ir.IntType(32), _FLAGS])
        store = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.masked.store.v8i64.p0")
        self.builder.call(store, [value, pointer, _ALIGNED, flags])

    def sum(self, value: _Value) -> _Value:
        kind = ir.FunctionType(_WORD, [_VECTOR])
        add = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.vector.reduce.add.v8i64")
        return self.builder.call(add, [value])

    def accumulators(self, rows: int, columns: int) -> list[list[_Value]]:
        """Variables that the optimizer keeps in registers."""
        return [[cgutils.alloca_once(self.builder, _VECTOR) for _ in range(columns)] for _ in range(rows)]

    def multiply_add(self, total: _Value, x: _Value, y: _Value) -> None:
        so_far = self.builder.load(total, typ=_VECTOR)
        self.builder.store(self.builder.add(so_far, self.builder.mul(x, y)), total)


def _check_layout(*arrays: Any) -> None:
    """The code walks memory by itself: an array's elements must be adjacent there."""
    if any(array.layout != "C" or array.ndim != 1 or array.dtype != types.int64 for array in arrays):
        raise TypingError(f"expected flat arrays of adjacent int64, found {arrays}")


@_intrinsic
def gather(
    typing: Any, a: Any, a_first: Any, a_row: Any, a_step: Any, rows: Any, x: Any, x_first: Any, places: Any,
    first: Any, count: Any, taps: Any, steps: Any, out: Any, out_first: Any, out_places: Any, out_row: Any, lanes: Any,
    add: Any,
) -> Any:  # fmt: skip
    """out[row r, vector v] = (+=, if ``add``) the sum over t of a[r, t] * x[place v + tap t], 8 elements at once.

    r up to ``rows``, v from ``first`` for ``count``, t up to ``steps``:
    a[a_first + r * a_row + t * a_step]; x[x_first + places[v] + taps[t]] and out[out_first + r * out_row +
    out_places[v]], with as many elements from there on as lanes[v] says.
    """
    _check_layout(a, x, places, taps, out, out_places, lanes)
    kinds = (a, *(types.int64,) * 4, x, types.int64, places, *(types.int64,) * 2, taps, types.int64, out, types.int64)
    signature = types.void(*kinds, out_places, types.int64, lanes, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(context, builder)
        (a_, a_first, a_row, a_step, rows, x_, x_first, places_, first, count) = arguments[:10]
        (taps_, steps, out_, out_first, out_places_, out_row, lanes_, add) = arguments[10:]
        number, add_to = builder.mul, builder.add
        left, right = code.pointer(a, a_), code.pointer(x, x_)
        result, table = code.pointer(out, out_), code.pointer(taps, taps_)
        starts, ends = code.pointer(places, places_), code.pointer(out_places, out_places_)
        row = code.clamped(ROWS, rows)
        vector = [add_to(first, v) for v in code.clamped(VECTORS, count)]
        factor = [code.at(left, add_to(a_first, number(r, a_row))) for r in row]
        seen = [code.at(right, add_to(x_first, code.word(starts, v))) for v in vector]
        line = [code.at(result, add_to(out_first, number(r, out_row))) for r in row]
        target = [[code.at(start, code.word(ends, v)) for v in vector] for start in line]
        width = code.pointer(lanes, lanes_)
        inside = [code.first(code.word(width, v)) for v in vector]
        before = code.splat(builder.icmp_signed("!=", add, ir.Constant(_WORD, 0)), _FLAGS)
        sums = code.accumulators(ROWS, VECTORS)
        for r in range(ROWS):
            for v in range(VECTORS):
                builder.store(code.masked_load(target[r][v], builder.and_(inside[v], before)), sums[r][v])

        def walk(masks: list[_Value] | None) -> None:
            with cgutils.for_range(builder, steps, intp=_WORD) as loop:
                shift = code.word(table, loop.index)
                values = code.vectors([code.at(start, shift) for start in seen], masks)
                along = number(loop.index, a_step)
                for r in range(ROWS):
                    weight = code.splat(code.word(factor[r], along))
                    for v in range(VECTORS):
                        code.multiply_add(sums[r][v], weight, values[v])

        # Loads without a mask are faster, and most tiles need none.
        narrowest = reduce(code.least, (code.word(width, v) for v in vector))
        with builder.if_else(builder.icmp_signed("<", narrowest, ir.Constant(_WORD, LANES))) as (some, all_):
            with some:
                walk(inside)
            with all_:
                walk(None)
        for r in range(ROWS):
            for v in range(VECTORS):
                code.masked_store(builder.load(sums[r][v], typ=_VECTOR), target[r][v], inside[v])
        return context.get_dummy_value()

    return signature, generate


@_intrinsic
def dots(
    typing: Any, a: Any, a_first: Any, a_row: Any, rows: Any, a_places: Any, x: Any, x_first: Any, taps: Any, tap: Any,
    count: Any, places: Any, lanes: Any, first: Any, full: Any, vectors: Any, out: Any, out_first: Any, out_row: Any,
) -> Any:  # fmt: skip
    """out[row r, t] += the sum over vectors v, and their elements, of a[row r, v] * x[tap t, v].

    r up to ``rows``, t from ``tap`` for ``count``, v from ``first`` for ``vectors``:
    a[a_first + r * a_row + a_places[v]] and x[x_first + taps[t] + places[v]], with as many elements from there on as
    lanes[v] says, and of the first ``full`` vectors all 8; out[out_first + r * out_row + t'] with t' counted from 0.
    """
    _check_layout(a, a_places, x, taps, places, lanes, out)
    kinds = (a, *(types.int64,) * 3, a_places, x, types.int64, taps, *(types.int64,) * 2, places, lanes)
    signature = types.void(*kinds, *(types.int64,) * 3, out, *(types.int64,) * 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = _Code(context, builder)
        (a_, a_first, a_row, rows, a_places_, x_, x_first, taps_, tap, count) = arguments[:10]
        (places_, lanes_, first, full, vectors, out_, out_first, out_row) = arguments[10:]
        number, add_to = builder.mul, builder.add
        left, right, result = code.pointer(a, a_), code.pointer(x, x_), code.pointer(out, out_)
        table, width = code.pointer(taps, taps_), code.pointer(lanes, lanes_)
        a_starts, starts = code.pointer(a_places, a_places_), code.pointer(places, places_)
        row, column = code.clamped(DOT_ROWS, rows), code.clamped(DOT_COLUMNS, count)
        factor = [code.at(left, add_to(a_first, number(r, a_row))) for r in row]
        seen = [code.at(right, add_to(x_first, code.word(table, add_to(tap, t)))) for t in column]
        line = [code.at(result, add_to(out_first, number(r, out_row))) for r in row]
        sums = code.accumulators(DOT_ROWS, DOT_COLUMNS)
        for total in (total for totals in sums for total in totals):
            builder.store(_NONE, total)

        def step(v: _Value, inside: _Value | None) -> None:
            one, two = code.word(a_starts, v), code.word(starts, v)
            masks = None if inside is None else [inside] * _SIDE
            weights = code.vectors([code.at(start, one) for start in factor], masks)
            values = code.vectors([code.at(start, two) for start in seen], masks)
            for r in range(DOT_ROWS):
                for t in range(DOT_COLUMNS):
                    code.multiply_add(sums[r][t], weights[r], values[t])

        with cgutils.for_range(builder, full, intp=_WORD) as loop:
            step(add_to(first, loop.index), None)
        with cgutils.for_range(builder, builder.sub(vectors, full), intp=_WORD) as loop:
            v = add_to(add_to(first, full), loop.index)
            step(v, code.first(code.word(width, v)))
        targets = [[code.at(start, t) for t in column] for start in line]
        before = [[builder.load(place, typ=_WORD) for place in places] for places in targets]
        for r in range(DOT_ROWS):
            for t in range(DOT_COLUMNS):
                total = code.sum(builder.load(sums[r][t], typ=_VECTOR))
                builder.store(builder.add(before[r][t], total), targets[r][t])
        return context.get_dummy_value()

    return signature, generate
