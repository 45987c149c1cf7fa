"""How far one operation's results may be from float64, and what must stay in range while it runs.

Both are judged from what went into the operation, after it rounded that: an operation that settles a pending product
in place is judged by the settled value, and settling by its own bound, 1 ulp. u = 2^-f.

* Moves, sums, products and selections: 1 u, and the rounding of public factors, 2^-f of their largest element.
* Comparisons: exact, but for operands that differ by no more than 1 u where one of them is public or has more than f
  fraction bits. What meets in one (signs, clamps, maxima, too) must be within ``Session.compared_bits``.
* Functions of one number, division, softmax: 2 u or 2^-12 of the result, whichever is larger.
* Whatever is made of several of these (norms, attention, losses, derivatives): 16 u for each unit of the largest
  input, and 2^-10 of the largest result. Coarser, but what is wrong by more than that is wrong.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from encml.inspect.opened import Opened, Plain, largest
from encml.mpc.session import Session
from encml.ring.fixed import bound
from encml.tensor.shared import SharedTensor


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COMPARISONS = _names("lt gt le ge eq ne")
_SIGNED = _names("relu abs sign sgn leaky_relu _prelu_kernel")
_MET = _names("maximum minimum clamp clamp_min clamp_max hardtanh hardsigmoid hardswish threshold")
_RANKED = _names(
    "max min amax amin aminmax argmax argmin cummax cummin max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d"
)
_MEANS = _names("mean avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d mse_loss")
_LINEAR = (
    _COMPARISONS
    | _MEANS
    | _names("add sub rsub neg mul sum cumsum mm bmm mv dot addmm addmv baddbmm convolution convolution_backward")
    | _names("clone _to_copy copy fill zero zeros_like ones_like full_like new_zeros new_ones new_full")
    | _names("cat stack flip roll repeat tril triu constant_pad_nd index index_select gather embedding")
    | _names("index_add scatter_add index_put _index_put_impl")
    | _names("select_backward slice_backward diagonal_backward unfold_backward avg_pool2d_backward threshold_backward")
    | _names("relu abs sign sgn where masked_fill maximum minimum max min amax amin")
    | _names("logical_not bitwise_not logical_and bitwise_and logical_or bitwise_or logical_xor bitwise_xor")
)
_CURVES = _names(
    "exp exp2 expm1 log log2 log10 log1p reciprocal sqrt rsqrt sigmoid tanh erf erfc gelu silu softplus mish sin cos "
    "tan asin acos atan sinh cosh asinh acosh atanh log_sigmoid_forward _softmax _log_softmax logsumexp"
)
_CURVE_ULPS, _CURVE_SHARE = 2.0, 2.0**-12
_LOOSE_ULPS, _LOOSE_SHARE = 16.0, 2.0**-10


def name_of(func: Any) -> str:
    """The operator's name without overload; or a Python function's."""
    schema = getattr(func, "_schema", None)
    return str(func.__name__) if schema is None else str(schema.name).removeprefix("aten::")


class Bounds:
    """The bounds of one call: ``func(*args, **kwargs)`` of opened values."""

    def __init__(self, func: Any, arguments: tuple[Any, Any], values: Opened, session: Session) -> None:
        self.func, self.arguments, self.values, self._session = func, arguments, values, session
        fraction_bits = session.fraction_bits
        self.name = name_of(func)
        self.family = self.name.rstrip("_")  # in place or not
        self.ulp = math.ldexp(1.0, -fraction_bits)
        self.fraction_bits = fraction_bits
        self._public = [x for x in tree_leaves(arguments) if _is_public_number(x)]
        division = self.family == "div" and len(arguments[0]) > 1 and isinstance(arguments[0][1], SharedTensor)
        operator = hasattr(func, "_schema")
        self.is_curve = operator and (self.family in _CURVES or division)
        self.is_linear = operator and not self.is_curve and self.family in _LINEAR | {"div"}

    def range_bits(self, bits: int) -> int:
        """Results with ``bits`` fraction bits must stay below 2^this in magnitude.

        What is only moved, added and multiplied may use all of the ring's 62 bits, functions the declared range.
        """
        return 62 - (bits if self.is_linear else max(bits, 2 * self.fraction_bits))

    def error(self, exact: Tensor, writes: bool) -> Tensor | float:
        """What each element of a result may be off, at most. writes: the operation wrote in place."""
        if self.family == "mse_loss":  # the difference is rounded, unseen, before it is squared
            return self.ulp * (2 + 2 * largest(self._difference()) + exact.abs())
        if self.is_linear:
            # A target written in place is rounded before it is used, unseen; in a product, its error grows.
            unseen = 0.0 if not writes else self._largest_input() if self.family in ("mul", "div") else 1.0
            return self.ulp * (1 + unseen) + self._of_public_factors(exact)
        if self.is_curve:
            return exact.abs().mul(_CURVE_SHARE).clamp(min=_CURVE_ULPS * self.ulp)
        if self.family == "pow" and isinstance(self.arguments[0][1], int | float):
            # So many products, each rounded, and multiplied by the rest.
            times = abs(float(self.arguments[0][1]))
            growth: float = max(1.0, self._largest_input()) ** max(times - 1, 0.0)
            return _CURVE_SHARE * exact.abs() + self.ulp * (2 + times * growth)
        return _LOOSE_ULPS * self.ulp * (1 + self._largest_input()) + _LOOSE_SHARE * largest(exact)

    def compared(self, exact: Tensor) -> Tensor | None:
        """Which elements of a result can be compared; None if all.

        Infinity in, as for what a mask hides, may be infinity or NaN out, which fixed point has no number for; filling
        with infinity fills with half of the range's lower end.
        """
        if self.family == "masked_fill":
            return exact != -bound(self.fraction_bits) / 2
        inputs = [self.values.of(x) for x in self._secrets()] + [x for x in self._public if isinstance(x, Tensor)]
        if all(math.isfinite(x) for x in self._public if not isinstance(x, Tensor)) and all(
            bool(x.isfinite().all()) for x in inputs
        ):
            return None
        return exact.isfinite()

    def may_differ(self) -> Tensor | None:
        """Where a comparison may go either way; None where it must be exact."""
        if self.family not in _COMPARISONS:
            return None
        difference = self._difference()
        exact = not self._public and all(self.values.settled(x) for x in self._secrets())
        return difference <= (-1.0 if exact else self.ulp)

    def on_the_way(self, exact: Tensor) -> list[tuple[str, float, int, int]]:
        """Numbers that the operation passes through: (what, largest magnitude, fraction bits, limit): below 2^limit."""
        compared = self._compared_numbers()
        if compared is not None:
            what, size, difference = compared
            bits = max(self.values.bits(x) for x in self._secrets())
            limit = self._session.compared_bits(bits, difference=difference) - 1 - bits
            return [(what, size, bits, limit)]
        if self.family not in _MEANS or not exact.numel():
            return []
        x = self._secrets()[0]
        bits = self.values.bits(x)
        if self.family == "mse_loss":
            if exact.ndim:
                return []
            size, what, bits = largest(exact) * self._difference().numel(), "the sum of squares", 2 * self.fraction_bits
        elif self.family == "mean":
            size, what = largest(exact) * x.numel() / exact.numel(), "the sum that the mean is made of"
        else:
            size, what = largest(exact) * self._window(x, exact), "a window's sum"
        return [(what, size, bits, self.range_bits(bits))]

    def _compared_numbers(self) -> tuple[str, float, bool] | None:
        """What the operation compares: (in words, the largest magnitude, whether it is a difference)."""
        secrets = self._secrets()
        if self.family in _SIGNED:
            return "the value whose sign is asked", max(largest(self.values.of(x)) for x in secrets), False
        if self.family in _RANKED:
            values = self.values.of(secrets[0]).double()
            finite = values[values.isfinite()]
            spread = float(finite.max() - finite.min()) if finite.numel() else 0.0
            return "the difference of what is compared", spread, True
        if self.family in _COMPARISONS:
            against_zero = any(not isinstance(x, Tensor) and x == 0 for x in self.arguments[0][:2])
            return "the difference of the operands", largest(self._difference()), not against_zero
        if self.family in _MET:
            numbers = [largest(x) if isinstance(x, Tensor) else abs(float(x)) for x in self._public]
            met = max((x for x in numbers if math.isfinite(x)), default=0.0)
            if len(secrets) > 1:
                met = largest(self.values.of(secrets[1]))
            return "the difference of what is compared", largest(self.values.of(secrets[0])) + met, True
        return None

    def _window(self, x: Tensor, exact: Tensor) -> int:
        """Elements of one pooling window."""
        if self.family.startswith("_adaptive"):
            dims = len(self.arguments[0][1])
            return math.prod(-(-a // b) for a, b in zip(x.shape[-dims:], exact.shape[-dims:], strict=True))
        return math.prod(self.arguments[0][1])

    def _secrets(self) -> list[SharedTensor]:
        return [x for x in tree_leaves(self.arguments) if isinstance(x, SharedTensor)]

    def _difference(self) -> Tensor:
        left, right = (
            self.values.of(x).to(torch.float64) if isinstance(x, SharedTensor) else torch.as_tensor(x).double()
            for x in self.arguments[0][:2]
        )
        return (left - right).abs()

    def smallest_input(self) -> float:
        """The smallest magnitude among the secrets that went in."""
        return min((float(self.values.of(x).double().abs().min()) for x in self._secrets() if x.numel()), default=0.0)

    def _largest_input(self) -> float:
        inputs = [largest(self.values.of(x)) for x in self._secrets()]
        inputs += [largest(x) if isinstance(x, Tensor) else abs(float(x)) for x in self._public]
        return max((x for x in inputs if math.isfinite(x)), default=0.0)

    def _of_public_factors(self, exact: Tensor) -> Tensor | float:
        """2^-f of what the result would be were all terms positive and all public factors as large as their largest."""
        if self.family in _MEANS:
            return exact.abs() * self.ulp
        if not self._public:
            return 0.0
        divides = self.family == "div"

        def extreme(x: Any) -> Any:
            if not _is_public_number(x):
                return x
            if not isinstance(x, Tensor):
                return abs(x)
            sizes = x.abs()
            return torch.full_like(x, float(sizes.min() if divides else sizes.max())) if x.numel() else x

        args, kwargs = self.arguments
        bounding = (tuple(extreme(x) for x in args), {key: extreme(x) for key, x in kwargs.items()})
        total = Plain(self.func, bounding, lambda x: _magnitude(self.values.of(x))).leaf(0)
        return total * self.ulp if isinstance(total, Tensor) and total.shape == exact.shape else exact.abs() * self.ulp


def _magnitude(values: Tensor) -> Tensor:
    return values if values.dtype == torch.bool else values.abs()


def _is_public_number(x: Any) -> bool:
    """A public factor or term that fixed point may have to round."""
    if isinstance(x, Tensor):
        return not isinstance(x, SharedTensor) and x.is_floating_point()
    return isinstance(x, float)
