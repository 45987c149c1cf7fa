"""Fixed-point numbers in Z_2^64: encode and decode.

A real number v is kept as the integer round(v * 2^f), two's complement, in an int64 tensor (Catrina and Saxena
2010). A product of two encodings has 2f fraction bits before it is truncated, and truncation needs |product| < 2^62
(see encml.mpc.truncation), so a value may be shared only where |v| < 2^(62 - 2f): 2^30 at the default f = 16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from encml.errors import InvalidTensor

DEFAULT_FRACTION_BITS = 16
MAX_FRACTION_BITS = 24
RANGE_BITS = 62
"""Every protocol assumes |integer| < 2^62 for what it is given."""

_EXACT = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def bound(fraction_bits: int) -> float:
    """The values that may be shared at ``fraction_bits``: those with |v| < bound."""
    return math.ldexp(1.0, RANGE_BITS - 2 * fraction_bits)


def encode(values: Tensor, fraction_bits: int) -> Tensor:
    """Real values to ring integers: round(v * 2^fraction_bits) as int64 of the same shape.

    Raises InvalidTensor for a complex or quantised dtype, NaN, infinity, or |v| >= bound(fraction_bits), also if only
    after rounding; the message holds the tensor's shape and the range that was found, never other values.
    """
    values = values.detach()
    if not (values.dtype.is_floating_point or values.dtype in _EXACT):
        raise InvalidTensor(
            f"cannot encode a tensor of dtype {values.dtype} and shape {tuple(values.shape)}: expected a real floating "
            "point, integer or bool tensor"
        )
    if values.numel():
        _check_range(values, fraction_bits)
    if values.dtype in _EXACT:
        return values.to(torch.int64) << fraction_bits
    return torch.round(values.to(torch.float64) * math.ldexp(1.0, fraction_bits)).to(torch.int64)


def decode(integers: Tensor, fraction_bits: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Ring integers to real values: v = integer / 2^fraction_bits, rounded once to ``dtype``.

    For bool and integer dtypes the integers must carry no fraction (``fraction_bits`` 0).
    """
    if dtype == torch.bool:
        return integers != 0
    if not dtype.is_floating_point:
        return (integers >> fraction_bits).to(dtype)
    return (integers.to(torch.float64) * math.ldexp(1.0, -fraction_bits)).to(dtype)


def _check_range(values: Tensor, fraction_bits: int) -> None:
    low, high = (float(v) for v in torch.aminmax(values.to(torch.float64)))
    where = f"a tensor of shape {tuple(values.shape)}"
    if math.isnan(low) or math.isnan(high):
        raise InvalidTensor(f"cannot share {where}: it holds NaN; replace or drop such entries first")
    limit = bound(fraction_bits)
    # A value within half a unit of the bound would round up to it.
    if max(-low, high) >= limit - math.ldexp(0.5, -fraction_bits):
        raise InvalidTensor(
            f"cannot share {where}: its values span [{low:.6g}, {high:.6g}], beyond the fixed-point range "
            f"(-{limit:.6g}, {limit:.6g}) at {fraction_bits} fraction bits; scale the data or use fewer fraction bits"
        )
