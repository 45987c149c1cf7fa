"""Fixed point: decode after encode is the value to half a unit, and what cannot be encoded is refused by name."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encml.errors import InvalidTensor
from encml.ring.fixed import MAX_FRACTION_BITS, RANGE_BITS, bound, decode, encode

FRACTION_BITS = st.integers(4, MAX_FRACTION_BITS)


@st.composite
def value_and_bits(draw: st.DrawFn) -> tuple[float, int]:
    f = draw(FRACTION_BITS)
    limit = bound(f) * (1 - 2**-50)
    return draw(st.floats(-limit, limit, allow_subnormal=True)), f


def oracle(value: float, f: int) -> int:
    """Round half to even, in exact rational arithmetic."""
    return round(Fraction(value) * 2**f)


@settings(deadline=None)
@given(value_and_bits())
def test_encode_is_the_nearest_integer(case: tuple[float, int]) -> None:
    value, f = case
    if abs(oracle(value, f)) < 2 ** (RANGE_BITS - f):
        assert encode(torch.tensor(value, dtype=torch.float64), f).item() == oracle(value, f)
    else:
        with pytest.raises(InvalidTensor):
            encode(torch.tensor(value, dtype=torch.float64), f)


@settings(deadline=None)
@given(st.floats(-(2**13), 2**13), FRACTION_BITS)
def test_decode_of_encode_is_within_half_a_unit(value: float, f: int) -> None:
    back = decode(encode(torch.tensor(value, dtype=torch.float64), f), f, torch.float64).item()
    assert abs(Fraction(back) - Fraction(value)) <= Fraction(1, 2 ** (f + 1))


@pytest.mark.parametrize("f", [4, 16, 24])
@pytest.mark.parametrize("whole", [-1, -2, -1000, -(2**13)])
def test_negative_values_just_above_an_integer(whole: int, f: int) -> None:
    """CrypTen's decode is off by exactly 1.0 here."""
    for units in range(1, 9):
        value = whole + math.ldexp(units, -f)
        integer = encode(torch.tensor(value, dtype=torch.float64), f)
        assert integer.item() == whole * 2**f + units
        assert decode(integer, f, torch.float64).item() == value
        assert abs(decode(integer, f).item() - value) <= abs(value) * 2**-24


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_floating_dtypes_keep_shape_and_nearest_value(dtype: torch.dtype) -> None:
    values = torch.tensor([[0.0, -0.0, 1.0], [-1.5, 3.140625, -100.25]], dtype=dtype)
    integers = encode(values, 16)
    assert integers.dtype == torch.int64
    assert integers.shape == values.shape
    assert [v.item() for v in integers.view(-1)] == [oracle(v.item(), 16) for v in values.reshape(-1)]
    assert torch.equal(decode(integers, 16, dtype), values)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integer_dtypes_are_exact(dtype: torch.dtype) -> None:
    values = torch.tensor([0, 1, 2, 127], dtype=dtype)
    assert encode(values, 16).tolist() == [0, 1 << 16, 2 << 16, 127 << 16]
    assert torch.equal(decode(encode(values, 16), 16, dtype), values)


def test_bool_values() -> None:
    flags = torch.tensor([True, False])
    assert encode(flags, 0).tolist() == [1, 0]
    assert torch.equal(decode(encode(flags, 16), 16, torch.bool), flags)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 1, 3)])
def test_shapes(shape: tuple[int, ...]) -> None:
    values = torch.full(shape, -0.25)
    assert torch.equal(decode(encode(values, 16), 16), values)


def test_non_contiguous_values() -> None:
    values = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(decode(encode(values, 16), 16), values)


def test_a_tensor_that_requires_grad_is_encoded_without_a_graph() -> None:
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    integers = encode(values, 16)
    assert integers.tolist() == [1 << 16, -(2 << 16)]
    assert not integers.requires_grad


@pytest.mark.parametrize("f", [4, 16, 24])
def test_the_largest_product_still_truncates(f: int) -> None:
    """What is accepted, times 1.0, is at most 2^62 - 2^f: the bound of a truncation by f bits."""
    largest = math.nextafter(bound(f), 0) if f < 10 else bound(f) - math.ldexp(0.75, -f)
    integer = encode(torch.tensor(largest, dtype=torch.float64), f).item()
    assert integer * 2**f <= 2**62 - 2**f


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("f", [4, 16, 24])
@pytest.mark.parametrize("excess", [0.0, 1.0, math.inf])
def test_values_from_the_bound_on_are_refused(f: int, sign: int, excess: float) -> None:
    values = torch.tensor([0.0, sign * (bound(f) + excess)], dtype=torch.float64)
    with pytest.raises(InvalidTensor, match="fixed-point range"):
        encode(values, f)


def test_a_value_that_rounds_up_to_the_bound_is_refused() -> None:
    with pytest.raises(InvalidTensor, match="fixed-point range"):
        encode(torch.tensor(bound(16) - 2**-18, dtype=torch.float64), 16)


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([2**31]),
        torch.tensor([-(2**63)]),
        torch.tensor([3.0e38]),
    ],
)
def test_other_dtypes_are_range_checked_too(values: Tensor) -> None:
    with pytest.raises(InvalidTensor, match="fixed-point range"):
        encode(values, 16)


def test_nan_is_refused_even_between_large_values() -> None:
    with pytest.raises(InvalidTensor, match="NaN"):
        encode(torch.tensor([1.0, math.nan, math.inf]), 16)


@pytest.mark.parametrize("values", [torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.uint64)])
def test_other_number_types_are_refused(values: Tensor) -> None:
    with pytest.raises(InvalidTensor, match="dtype"):
        encode(values, 16)


def test_the_message_holds_shape_and_range_and_no_other_value() -> None:
    values = torch.tensor([[-7.0e11, 123.456789], [42.4242, 9.0e12]])
    with pytest.raises(InvalidTensor) as caught:
        encode(values, 16)
    text = str(caught.value)
    assert "(2, 2)" in text
    assert "[-7e+11, 9e+12]" in text
    assert "123.4" not in text
    assert "42.42" not in text
