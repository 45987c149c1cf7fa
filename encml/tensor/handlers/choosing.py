"""Element-wise choices: absolute values, signs, clamps, the piecewise linear activations, where."""

from __future__ import annotations

import torch
from torch import Tensor

from encml.errors import InvalidTensor, UnsupportedOperation
from encml.ring.devices import beside
from encml.ring.layout import stack
from encml.tensor.handlers.arithmetic import add, add_secrets, mul, scale, sub
from encml.tensor.handlers.chance import coin_uniform
from encml.tensor.handlers.common import as_secret, by_public, result_dtype, session_of, wrap, write
from encml.tensor.handlers.compare import as_side
from encml.tensor.handlers.copies import clone
from encml.tensor.handlers.signs import Mask, Side, above_number, arithmetic_of, below, chosen, chosen_last, laid_out
from encml.tensor.public import Number, Operand
from encml.tensor.secret import Secret, align, settle_all
from encml.tensor.shared import SharedTensor, secret

SLOPES = "slopes"
"""The name of a fact about the noise of rrelu: the public slopes that it holds."""

# Signs -----------------------------------------------------------------------------------------------------------


def absolute(x: SharedTensor) -> SharedTensor:
    """abs: 2 [x > 0] x - x. 10 rounds, 27.3 B a party and element; 2 rounds and 10.7 B after a relu of x."""
    value = secret(x)
    (positive,) = below((0, value), operation="abs")
    part = chosen((positive, value), operation="abs")
    return wrap(add_secrets(part.linear(lambda terms: 2 * terms), value, -1), x.dtype)


def sign(x: SharedTensor) -> SharedTensor:
    """sign, sgn: [x > 0] - [x < 0], in one batch of comparisons. 10 rounds, 49 B a party and element."""
    if x.dtype == torch.bool:
        return clone(x)
    value = _rounded(x)
    positive, negative = arithmetic_of(below((0, value), (value, 0), operation="sign"), "sign")
    return wrap(add_secrets(positive, negative, -1), x.dtype)


def _rounded(x: SharedTensor) -> Secret:
    """A product is rounded before its sign is taken: what is rounded to 0 has none."""
    value = secret(x)
    return value.settle() if value.pending else value


def heaviside(x: Tensor, values: Tensor) -> SharedTensor:
    """heaviside: 0 where x < 0, ``values`` where x = 0, 1 where x > 0."""
    if x.dtype != values.dtype:
        raise UnsupportedOperation(f"heaviside: found dtypes {x.dtype} and {values.dtype}, expected the same")
    if not isinstance(x, SharedTensor):
        positive, zero = (x > 0).to(x.dtype), (x == 0).to(x.dtype)
        return add(mul(zero, values), positive)
    value = _rounded(x)
    above, under = arithmetic_of(below((0, value), (value, 0), operation="heaviside"), "heaviside")
    ties = add_secrets(as_secret(1, x.session), add_secrets(above, under), -1)
    return add(mul(wrap(ties, x.dtype), values), wrap(above, x.dtype))


# Bounds ----------------------------------------------------------------------------------------------------------


def clamp(x: Tensor, low: Operand | None = None, high: Operand | None = None) -> SharedTensor:
    """clamp, clamp_min, clamp_max, with numbers, public or secret tensors.

    Public bounds: x + [x < low] (low - x) + [high < x] (high - x), both comparisons in one batch: 10 rounds; 27.3 B a
    party and element for one bound, 49.3 B for two. Secret bounds: maximum, then minimum.
    """
    if low is None and high is None:
        raise InvalidTensor("clamp: give a lower bound, an upper one, or both")
    dtype = result_dtype(x, *(bound for bound in (low, high) if bound is not None))
    if not isinstance(x, SharedTensor) or isinstance(low, SharedTensor) or isinstance(high, SharedTensor):
        result: Tensor = x
        if low is not None:
            result = maximum(result, low)
        if high is not None:
            result = minimum(result, high)
        assert isinstance(result, SharedTensor)
        return result
    if low is not None and high is not None:
        low = _lesser(low, high)
    value = secret(x)
    questions: list[tuple[Side, Side]] = []
    bounds: list[Operand] = []
    if low is not None:
        questions.append((value, as_side(low)))
        bounds.append(low)
    if high is not None:
        questions.append((as_side(high), value))
        bounds.append(high)
    masks = below(*questions, operation="clamp")
    return wrap(_replaced(value, list(zip(masks, bounds, strict=True))), dtype)


def clamp_max(x: Tensor, high: Operand) -> SharedTensor:
    """clamp_max"""
    return clamp(x, None, high)


def _lesser(low: Operand, high: Operand) -> Operand:
    """Where the bounds cross PyTorch gives the upper one."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return torch.minimum(torch.as_tensor(low), torch.as_tensor(high))
    return min(low, high)


def _replaced(value: Secret, places: list[tuple[Mask, Operand]]) -> Secret:
    """The secret with something else where a mask is 1: x + sum of mask * (new - x), the masks never both 1."""
    session = value.session
    steps = [(mask, add_secrets(as_secret(new, session), value, -1)) for mask, new in places]
    return add_secrets(value, chosen(*steps, operation="clamp"))


def hardtanh(x: SharedTensor, low: Number = -1.0, high: Number = 1.0) -> SharedTensor:
    """hardtanh, and relu6 by it: as clamp, with the bits that its backward needs."""
    value = secret(x)
    inside_low, inside_high = below((low, value), (value, high), operation="hardtanh")
    result = _replaced(value, [(~inside_low, low), (~inside_high, high)])
    return wrap(result, x.dtype)


def hardtanh_backward(gradient: Tensor, x: Tensor, low: Number, high: Number) -> SharedTensor:
    """hardtanh_backward: gradient * [low < x < high]. 2 rounds, 10.7 B a party and element."""
    return _gated(gradient, x, low, high)


def _gated(gradient: Tensor, x: Tensor, low: Number, high: Number) -> SharedTensor:
    """gradient * [low < x < high] for low < high, where one of the two always holds."""
    session = session_of(gradient, x)
    if not isinstance(x, SharedTensor):
        return mul(gradient, (x > low) & (x < high))
    one, two = below((low, secret(x)), (secret(x), high))
    return wrap(chosen_last(~(one ^ two), as_secret(gradient, session), "backward"), gradient.dtype)


def hardsigmoid(x: SharedTensor) -> SharedTensor:
    """hardsigmoid: clamp(x + 3, 0, 6) / 6."""
    return mul(add(hardtanh(x, -3, 3), 3), 1 / 6)


def hardsigmoid_backward(gradient: Tensor, x: Tensor) -> SharedTensor:
    """hardsigmoid_backward: gradient / 6 where -3 < x < 3."""
    return mul(_gated(gradient, x, -3, 3), 1 / 6)


def hardswish(x: SharedTensor) -> SharedTensor:
    """hardswish: x clamp(x + 3, 0, 6) / 6. 18 rounds. 6 x must be within the range."""
    product = mul(x, add(hardtanh(x, -3, 3), 3))
    return mul(product, 1 / 6)


def hardswish_backward(gradient: Tensor, x: SharedTensor) -> SharedTensor:
    """hardswish_backward: gradient times 0, x / 3 + 1/2 or 1, below, within and above [-3, 3]."""
    value = secret(x)
    above_low, below_high = below((-3, value), (value, 3))
    slope = secret(add(mul(x, 1 / 3), 0.5)).settle()
    # Not below 3, or between: one of the two bits at least is 1.
    factor = chosen((~below_high, as_secret(1, x.session)), (~(above_low ^ below_high), slope), operation="backward")
    return wrap(secret(mul(gradient, wrap(factor, x.dtype))), gradient.dtype)


# Rectifiers ------------------------------------------------------------------------------------------------------


def threshold(x: SharedTensor, limit: Number, value: Number) -> SharedTensor:
    """threshold: x where x > limit, else ``value``. 10 rounds, 27.3 B a party and element."""
    held = secret(x)
    (mask,) = below((limit, held), operation="threshold")
    rest = as_secret(value, x.session)
    return wrap(add_secrets(chosen((mask, add_secrets(held, rest, -1)), operation="threshold"), rest), x.dtype)


def leaky_relu(x: SharedTensor, slope: Number = 0.01) -> SharedTensor:
    """leaky_relu: p + slope (x - p) with p = relu(x). 12 rounds, 33.4 B a party and element."""
    value = secret(x)
    (positive,) = below((0, value), operation="leaky_relu")
    result = _leak(value, chosen((positive, value), operation="leaky_relu"), slope)
    if slope >= 0:
        result.keep(above_number(0), positive.bits)
    return wrap(result, x.dtype)


def leaky_relu_backward(gradient: Tensor, x: Tensor, slope: Operand, is_result: bool) -> SharedTensor:
    """leaky_relu_backward, by the bits kept. 4 rounds, 16.8 B a party and element."""
    session = session_of(gradient, x)
    if not isinstance(x, SharedTensor):
        return mul(gradient, torch.where(x > 0, 1.0, slope))
    (positive,) = below((0, secret(x)))
    held = as_secret(gradient, session)
    return wrap(_leak(held, chosen((positive, held), operation="backward"), slope), gradient.dtype)


def _leak(value: Secret, part: Secret, slope: Operand) -> Secret:
    """part + slope (value - part), with a public slope."""
    rest = add_secrets(value, part, -1)
    sloped = by_public(torch.mul, rest, slope) if isinstance(slope, Tensor) else scale(rest, slope)
    return add_secrets(sloped, part).settle()


def rrelu(
    x: SharedTensor, noise: Tensor, low: Number = 1 / 8, high: Number = 1 / 3, training: bool = False, *_: object
) -> SharedTensor:
    """rrelu_with_noise: leaky_relu with public random slopes in training, with their mean in evaluation.

    The slopes are written to ``noise``, as PyTorch does, also where x > 0 makes them idle.
    """
    slope: Operand = (low + high) / 2
    if training:
        slope = low + (high - low) * coin_uniform(x.session, tuple(x.shape))
        write(noise, Secret.of_public(x.session, slope), x.dtype)
        secret(noise).keep(SLOPES, slope)
    value = secret(x)
    (positive,) = below((0, value), operation="rrelu")
    result = _leak(value, chosen((positive, value), operation="rrelu"), slope)
    return wrap(result.linear(torch.Tensor.contiguous), x.dtype)


def rrelu_backward(
    gradient: Tensor, x: Tensor, noise: Tensor, low: Number, high: Number, training: bool, is_result: bool
) -> SharedTensor:
    """rrelu_with_noise_backward, with the slopes of forward."""
    slope: Operand = (low + high) / 2
    if training:
        slope = secret(noise).fact(SLOPES) if isinstance(noise, SharedTensor) else noise
    return leaky_relu_backward(gradient, x, slope, is_result)


def prelu(x: Tensor, weight: Tensor) -> SharedTensor:
    """_prelu_kernel: p + weight (x - p) with p = relu(x). 13 rounds, 36 B a party and element."""
    if not isinstance(x, SharedTensor):
        return add(mul(weight, x.clamp(max=0)), x.clamp(min=0))
    value = secret(x)
    (positive,) = below((0, value), operation="prelu")
    part = wrap(chosen((positive, value), operation="prelu"), x.dtype)
    return add(mul(weight, sub(x, part)), part)


def prelu_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[SharedTensor, SharedTensor]:
    """_prelu_kernel_backward: g+ + weight g- for x and x g- for the weight, g- = gradient where x <= 0."""
    session = session_of(gradient, x, weight)
    if isinstance(x, SharedTensor):
        (positive,) = below((0, secret(x)))
        part: Tensor = wrap(chosen((positive, as_secret(gradient, session)), operation="backward"), gradient.dtype)
    else:
        part = gradient * (x > 0)
    rest = sub(gradient, part)
    return add(mul(weight, rest), part), mul(x, rest)


def _outside(x: Tensor, limit: Number) -> tuple[Mask, Mask]:
    """[x < -limit] and [limit < x], never both."""
    below_low, above_high = below((secret(x), -limit), (limit, secret(x)))
    return below_low, above_high


def hardshrink(x: SharedTensor, limit: Number = 0.5) -> SharedTensor:
    """hardshrink: x outside [-limit, limit], else 0. 10 rounds, 44 B a party and element."""
    low, high = _outside(x, limit)
    return wrap(chosen((low ^ high, secret(x)), operation="hardshrink"), x.dtype)


def shrink_backward(gradient: Tensor, x: Tensor, limit: Number = 0.5) -> SharedTensor:
    """hardshrink_backward, softshrink_backward: the gradient outside [-limit, limit], else 0."""
    session = session_of(gradient, x)
    if not isinstance(x, SharedTensor):
        return mul(gradient, x.abs() > limit)
    low, high = _outside(x, limit)
    return wrap(chosen((low ^ high, as_secret(gradient, session)), operation="backward"), gradient.dtype)


def softshrink(x: SharedTensor, limit: Number = 0.5) -> SharedTensor:
    """softshrink: x - limit above limit, x + limit below -limit, else 0. 10 rounds, 49 B a party and element."""
    low, high = _outside(x, limit)
    value, step = secret(x), as_secret(limit, x.session)
    pieces = (low, add_secrets(value, step)), (high, add_secrets(value, step, -1))
    return wrap(chosen(*pieces, operation="softshrink"), x.dtype)


# Two tensors -----------------------------------------------------------------------------------------------------


def maximum(x: Operand, y: Operand) -> SharedTensor:
    """maximum, fmax: x + [x < y] (y - x). 10 rounds, 27.3 B a party and element."""
    return _larger(x, y, 1)


def minimum(x: Operand, y: Operand) -> SharedTensor:
    """minimum, fmin: x + [y < x] (y - x)."""
    return _larger(x, y, -1)


def _larger(x: Operand, y: Operand, way: int) -> SharedTensor:
    session, dtype = session_of(x, y), result_dtype(x, y)
    a, b = as_secret(x, session), as_secret(y, session)
    settle_all(*(value for value in (a, b) if value.pending))
    left, right = as_side(x), as_side(y)
    (second,) = below((left, right) if way > 0 else (right, left), operation="max")
    larger = add_secrets(a, chosen((second, add_secrets(b, a, -1)), operation="max"))
    return wrap(laid_out(larger, torch.add, x, y), dtype)


def where(condition: Tensor, x: Tensor, y: Tensor) -> SharedTensor:
    """where.self. A public condition: local. A secret one: y + condition * (x - y), pending, 1 product."""
    session, dtype = session_of(condition, x, y), result_dtype(x, y)
    if isinstance(condition, SharedTensor):
        if condition.dtype != torch.bool:
            raise UnsupportedOperation(f"where: expected a condition of bools, found {condition.dtype}")
        if not isinstance(x, SharedTensor) and not isinstance(y, SharedTensor):
            step: Tensor = x.to(dtype) - y.to(dtype)
        else:
            step = wrap(add_secrets(as_secret(x, session), as_secret(y, session), -1), dtype)
        result = add_secrets(secret(mul(condition, step)), as_secret(y, session))
        return wrap(laid_out(result, torch.where, condition, x, y), dtype)
    left, right, bits, pending = align(as_secret(x, session), as_secret(y, session))
    asked = beside(left, condition)
    terms = stack([torch.where(asked, a, b) for a, b in zip(left, right, strict=True)])
    return wrap(Secret(session, bits, **{"rows" if pending else "payload": terms}), dtype)


def masked_fill(x: Tensor, mask: Tensor, value: Operand) -> SharedTensor:
    """masked_fill by a public mask (local) or a secret one (a product), with a number or a scalar tensor."""
    filled = torch.as_tensor(value, dtype=x.dtype) if not isinstance(value, Tensor) else value
    result = secret(where(mask, filled, x))
    return wrap(result.linear(torch.Tensor.contiguous), x.dtype)
