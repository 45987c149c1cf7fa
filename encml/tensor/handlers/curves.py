"""Functions of one number, divisions and powers: settled, computed over the whole range, and their derivatives.

Errors, rounds and bytes are those of ``encml.mpc.functions``. A derivative that needs the same range reduction as its
function finds it as a fact about the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.mpc.functions import curves as pieces
from encml.mpc.functions import exponential, inverse, trigonometry
from encml.mpc.functions.curves import Cells, Curve
from encml.mpc.parties import Parties
from encml.ring.layout import from_order, in_memory_order, to_order
from encml.tensor.handlers import arithmetic
from encml.tensor.handlers.arithmetic import add, add_secrets, mul, rsub, scale, sub
from encml.tensor.handlers.common import as_secret, result_dtype, session_of, wrap
from encml.tensor.handlers.signs import below, chosen
from encml.tensor.public import Number, Operand
from encml.tensor.secret import Secret, settle_all
from encml.tensor.shared import SharedTensor, secret

Protocol = Callable[[Parties, Tensor, int], Tensor]


def function(protocol: Protocol) -> Callable[[SharedTensor], SharedTensor]:
    """The handler of a function of one number: ``protocol(parties, payload, f)`` on the settled payload."""

    def handler(x: SharedTensor) -> SharedTensor:
        value = secret(x)
        return wrap(_mapped(value, lambda payload: protocol(value.session.parties, payload, _f(value))), _dtype(x))

    return handler


exp = function(exponential.exp)
log = function(inverse.log)
reciprocal = function(inverse.reciprocal)
sqrt = function(inverse.sqrt)
rsqrt = function(inverse.rsqrt)
sin = function(trigonometry.sin)
cos = function(trigonometry.cos)


def on_curve(curve: Curve) -> Callable[[SharedTensor], SharedTensor]:
    """The handler of a curve. Where x lies is found once and stays with x, for other curves of the same grid."""

    def handler(x: SharedTensor) -> SharedTensor:
        value, fact = secret(x), f"cells of {curve.grid}"
        parties, f = value.session.parties, _f(value)

        def evaluated(payload: Tensor) -> Tensor:
            known = value.fact(fact)
            cells: Cells = known if known is not None else pieces.locate(parties, payload, f, curve.grid)
            value.keep(fact, cells)
            return pieces.evaluate(parties, payload, f, cells, curve)

        return wrap(_mapped(value, evaluated), _dtype(x))

    return handler


sigmoid = on_curve(pieces.SIGMOID)
tanh = on_curve(pieces.TANH)
erf = on_curve(pieces.ERF)
silu = on_curve(pieces.SILU)
mish = on_curve(pieces.MISH)
_softplus = on_curve(pieces.SOFTPLUS)
_GELU = {"none": on_curve(pieces.GELU), "tanh": on_curve(pieces.GELU_TANH)}
_GELU_SLOPE = {"none": on_curve(pieces.GELU_SLOPE), "tanh": on_curve(pieces.GELU_TANH_SLOPE)}
_silu_slope = on_curve(pieces.SILU_SLOPE)
_mish_slope = on_curve(pieces.MISH_SLOPE)


def gelu(x: SharedTensor, *, approximate: str = "none") -> SharedTensor:
    """gelu, exact or by tanh: the same cost."""
    return _GELU[approximate](x)


def gelu_backward(gradient: Tensor, x: Tensor, *, approximate: str = "none") -> SharedTensor:
    """gelu_backward: 8 rounds and a product where x was located in forward."""
    return mul(gradient, _as_shared(gradient, x, _GELU_SLOPE[approximate]))


def silu_backward(gradient: Tensor, x: Tensor) -> SharedTensor:
    """silu_backward: as ``gelu_backward``."""
    return mul(gradient, _as_shared(gradient, x, _silu_slope))


def mish_backward(gradient: Tensor, x: Tensor) -> SharedTensor:
    """mish_backward: as ``gelu_backward``."""
    return mul(gradient, _as_shared(gradient, x, _mish_slope))


def sigmoid_backward(gradient: Tensor, result: Tensor) -> SharedTensor:
    """sigmoid_backward: gradient * y (1 - y)."""
    return mul(gradient, mul(result, rsub(result, 1)))


def tanh_backward(gradient: Tensor, result: Tensor) -> SharedTensor:
    """tanh_backward: gradient * (1 - y^2)."""
    return mul(gradient, rsub(mul(result, result), 1))


def softplus(x: SharedTensor, beta: Number = 1, threshold: Number = 20) -> SharedTensor:
    """softplus, log(1 + exp(beta x)) / beta; straight from beta x = 16 on, which no threshold beyond it changes."""
    _ordinary(beta, threshold)
    return _softplus(x) if beta == 1 else _scaled(_softplus(_scaled(x, beta)), 1 / beta)


def softplus_backward(gradient: Tensor, x: Tensor, beta: Number, threshold: Number) -> SharedTensor:
    """softplus_backward: gradient * sigmoid(beta x), on the cells of forward for beta = 1."""
    _ordinary(beta, threshold)
    return mul(gradient, _as_shared(gradient, x, lambda held: sigmoid(held if beta == 1 else _scaled(held, beta))))


def log_sigmoid_forward(x: SharedTensor) -> tuple[SharedTensor, SharedTensor]:
    """log_sigmoid_forward: x - softplus(x); the second result is a buffer that backward does not need."""
    return sub(x, _softplus(x)), wrap(Secret(x.session, 0, payload=secret(x).terms.new_zeros(_shares(x), 0)), x.dtype)


def log_sigmoid_backward(gradient: Tensor, x: Tensor, buffer: Tensor) -> SharedTensor:
    """log_sigmoid_backward: gradient * (1 - sigmoid(x)), on the cells of forward."""
    return mul(gradient, _as_shared(gradient, x, lambda held: rsub(sigmoid(held), 1)))


def elu(x: SharedTensor, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1) -> SharedTensor:
    """elu: scale * x where x > 0, else scale * alpha * (exp(input_scale * x) - 1)."""
    value, parties = secret(x), x.session.parties
    (positive,) = below((0, value))
    above = wrap(chosen((positive, value), operation="elu"), x.dtype)
    under = _scaled(sub(x, above), input_scale)
    f = _f(value)
    raised = _mapped(secret(under), lambda payload: exponential.exp(parties, payload, f, nonpositive=True))
    return add(_scaled(above, scale), _scaled(sub(wrap(raised, x.dtype), 1), alpha * scale))


def celu(x: SharedTensor, alpha: Number = 1) -> SharedTensor:
    """celu"""
    return elu(x, alpha, 1, 1 / alpha)


def selu(x: SharedTensor) -> SharedTensor:
    """selu (Klambauer et al. 2017)"""
    return elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def elu_backward(
    gradient: Tensor, alpha: Number, scale: Number, input_scale: Number, is_result: bool, x_or_result: Tensor
) -> SharedTensor:
    """elu_backward: scale * gradient where x > 0, else gradient * input_scale * (result + alpha * scale)."""
    held = x_or_result if isinstance(x_or_result, SharedTensor) else _shared_like(gradient, x_or_result)
    result = held if is_result else elu(held, alpha, scale, input_scale)
    steep = _scaled(add(result, alpha * scale), input_scale)
    (positive,) = below((0, secret(held)))
    flat = add_secrets(as_secret(float(scale), held.session), secret(steep), -1)
    mended = chosen((positive, flat), operation="elu_backward")
    return mul(gradient, add(wrap(mended, held.dtype), steep))


def exp2(x: SharedTensor) -> SharedTensor:
    """exp2"""
    return exp(_scaled(x, math.log(2)))


def expm1(x: SharedTensor) -> SharedTensor:
    """expm1: exp(x) - 1, off by ulps and not by parts of itself near 0."""
    return sub(exp(x), 1)


def log_to(base: float) -> Callable[[SharedTensor], SharedTensor]:
    """The handler of the logarithm to a base."""
    return lambda x: _scaled(log(x), 1 / math.log(base))


def log1p(x: SharedTensor) -> SharedTensor:
    """log1p: log(1 + x), off by ulps and not by parts of itself near 0."""
    return log(add(x, 1))


def erfc(x: SharedTensor) -> SharedTensor:
    """erfc: 1 - erf(x)."""
    return rsub(erf(x), 1)


def sinh(x: SharedTensor) -> SharedTensor:
    """sinh: (exp(x) - exp(-x))/2, both in the same rounds."""
    return _scaled(sub(*_both_exponentials(x)), 0.5)


def cosh(x: SharedTensor) -> SharedTensor:
    """cosh: (exp(x) + exp(-x))/2, both in the same rounds."""
    return _scaled(add(*_both_exponentials(x)), 0.5)


def tan(x: SharedTensor) -> SharedTensor:
    """tan: sin(x)/cos(x), saturated near its poles as divisions are."""
    return divide(sin(x), cos(x))


def divide(x: Operand, y: Operand) -> SharedTensor:
    """div.Tensor, div.Scalar, by a secret or something public.

    By a secret: 30 rounds, 294 B a party and element; less where y broadcasts. x/0 is the end of the range.
    """
    if not isinstance(y, SharedTensor):
        return arithmetic.div(x, y)
    session = session_of(x, y)
    dividend, divisor = as_secret(x, session), secret(y)
    settle_all(dividend, divisor)
    shapes = [torch.empty_strided(v.shape, v.terms.stride()[1:], device="meta") for v in (dividend, divisor)]
    plain = torch.add(*shapes)
    order = sorted(range(plain.ndim), key=lambda d: -plain.stride()[d])
    f = session.fraction_bits

    def laid_out(value: Secret, shape: torch.Size) -> Tensor:
        terms = value.at_bits(f)
        terms = terms.reshape(len(terms), *(1,) * (plain.ndim - value.terms.ndim + 1), *terms.shape[1:])
        return to_order(terms.expand(-1, *shape), order)

    alone = (1,) * (plain.ndim - divisor.terms.ndim + 1)
    quotient = inverse.divide(
        session.parties,
        laid_out(dividend, plain.shape).contiguous(),
        laid_out(divisor, torch.Size((*alone, *divisor.shape))).contiguous(),
        f,
    )
    dtype = result_dtype(x, y)
    return wrap(
        Secret(session, f, payload=from_order(quotient, order)),
        dtype if dtype.is_floating_point else torch.get_default_dtype(),
    )


def power(x: SharedTensor, exponent: Number) -> SharedTensor:
    """pow.Tensor_Scalar: products for whole exponents, roots for halves, exp(exponent * log x) for others and x > 0."""
    if exponent == int(exponent):
        whole = arithmetic.power(x, abs(exponent))
        return whole if exponent >= 0 else reciprocal(whole)
    if exponent == 0.5:
        return sqrt(x)
    if exponent == -0.5:
        return rsqrt(x)
    return exp(_scaled(log(x), exponent))


def power_of_tensors(x: Operand, exponent: Operand) -> SharedTensor:
    """pow.Tensor_Tensor, pow.Scalar: exp(exponent * log x), for x > 0."""
    if isinstance(x, SharedTensor):
        return exp(mul(log(x), exponent))
    if isinstance(x, Tensor):
        return exp(mul(x.log(), exponent))
    return exp(mul(exponent, math.log(x))) if x > 0 else _no_power(x)


def _no_power(base: Number) -> SharedTensor:
    raise UnsupportedOperation(f"pow: {base!r} to a secret power; the base must be positive")


def _both_exponentials(x: SharedTensor) -> tuple[SharedTensor, SharedTensor]:
    both = exp(wrap(secret(x).settle().linear(lambda terms: torch.stack([terms, -terms], 1)), x.dtype))
    return wrap(secret(both).linear(lambda terms: terms[:, 0]), x.dtype), wrap(
        secret(both).linear(lambda terms: terms[:, 1]), x.dtype
    )


def _mapped(value: Secret, protocol: Callable[[Tensor], Tensor]) -> Secret:
    """``protocol`` on the payload at f fraction bits, laid out in memory as it is."""
    f = _f(value)
    return Secret(value.session, f, payload=in_memory_order(protocol, value.settle().at_bits(f)))


def _as_shared(gradient: Tensor, x: Tensor, slope: Callable[[SharedTensor], SharedTensor]) -> SharedTensor:
    """The slope at x, which may be public where the gradient is secret."""
    return slope(x if isinstance(x, SharedTensor) else _shared_like(gradient, x))


def _shared_like(gradient: Tensor, x: Tensor) -> SharedTensor:
    return wrap(as_secret(x, session_of(gradient)), x.dtype)


def _scaled(x: SharedTensor, number: Number) -> SharedTensor:
    return x if number == 1 else wrap(scale(secret(x), number), _dtype(x))


def _ordinary(beta: Number, threshold: Number) -> None:
    if beta <= 0 or threshold < 12:
        raise UnsupportedOperation(
            f"softplus with beta={beta}, threshold={threshold}; beta > 0 and threshold >= 12 are supported"
        )


def _dtype(x: SharedTensor) -> torch.dtype:
    return x.dtype if x.dtype.is_floating_point else torch.get_default_dtype()


def _f(value: Secret) -> int:
    return value.session.fraction_bits


def _shares(x: SharedTensor) -> int:
    return x.session.parties.shares_here
