"""Further functions of one or two numbers, made of the curves, signs and logarithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import gamma, inverses, logarithms, polynomials

aten = torch.ops.aten

_POLYNOMIALS = {
    aten.special_chebyshev_polynomial_t: polynomials.CHEBYSHEV_T,
    aten.special_chebyshev_polynomial_u: polynomials.CHEBYSHEV_U,
    aten.special_chebyshev_polynomial_v: polynomials.CHEBYSHEV_V,
    aten.special_chebyshev_polynomial_w: polynomials.CHEBYSHEV_W,
    aten.special_shifted_chebyshev_polynomial_t: polynomials.SHIFTED_T,
    aten.special_shifted_chebyshev_polynomial_u: polynomials.SHIFTED_U,
    aten.special_shifted_chebyshev_polynomial_v: polynomials.SHIFTED_V,
    aten.special_shifted_chebyshev_polynomial_w: polynomials.SHIFTED_W,
    aten.special_hermite_polynomial_h: polynomials.HERMITE_H,
    aten.special_hermite_polynomial_he: polynomials.HERMITE_HE,
    aten.special_laguerre_polynomial_l: polynomials.LAGUERRE_L,
    aten.special_legendre_polynomial_p: polynomials.LEGENDRE_P,
}

HANDLERS: dict[Any, Callable[..., Any]] = {
    aten.asin.default: inverses.asin,
    aten.acos.default: inverses.acos,
    aten.atan.default: inverses.atan,
    aten.atan2.default: inverses.atan2,
    aten.asinh.default: inverses.asinh,
    aten.acosh.default: inverses.acosh,
    aten.atanh.default: inverses.atanh,
    aten.erfinv.default: inverses.erfinv,
    aten.special_ndtri.default: inverses.ndtri,
    aten.lgamma.default: gamma.lgamma,
    aten.digamma.default: gamma.digamma,
    aten.polygamma.default: gamma.polygamma,
    aten.xlogy.Tensor: logarithms.xlogy,
    aten.xlogy.Scalar_Self: logarithms.xlogy,
    aten.xlogy.Scalar_Other: logarithms.xlogy,
    aten.special_xlog1py.default: logarithms.xlog1py,
    aten.special_entr.default: logarithms.entr,
    aten.logaddexp2.default: logarithms.logaddexp2,
    aten.logit.default: logarithms.logit,
    aten.logit_backward.default: logarithms.logit_backward,
    aten.hypot.default: logarithms.hypot,
    aten.ldexp.Tensor: logarithms.ldexp,
    aten.signbit.default: logarithms.signbit,
    aten.copysign.Tensor: logarithms.copysign,
    aten.copysign.Scalar: logarithms.copysign,
    **{op.default: polynomials.polynomial(family) for op, family in _POLYNOMIALS.items()},
    **{op.n_scalar: polynomials.polynomial(family) for op, family in _POLYNOMIALS.items()},
}
