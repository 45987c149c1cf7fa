"""Softmax and its relatives. A log-softmax keeps what the softmax needs further, so that backward has no exp to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.mpc.functions import softmax as protocol
from encml.ring.layout import from_order, to_order
from encml.tensor.handlers.arithmetic import mul, sub
from encml.tensor.handlers.common import as_secret, axis, session_of, supported_dtype, wrap
from encml.tensor.handlers.linear import sum_dims
from encml.tensor.handlers.signs import AT_ONCE
from encml.tensor.secret import Secret, settle_all
from encml.tensor.shared import SharedTensor, secret

HIDDEN = "hidden"
"""The fact about a secret that says which of its entries a public mask takes out of a softmax: bool of its shape."""
_SOFTMAX = "softmax"
"""The fact about a log-softmax that gives the softmax."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """How terms (S, *shape) become (S, k, n), with dimension ``first`` of the shape as k, and back."""

    first: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, dim: int) -> _Columns:
        return cls(axis(x, dim) - 1, tuple(x.shape))

    @property
    def _order(self) -> list[int]:
        rank = len(self.shape)
        return [self.first, *(d for d in range(rank) if d != self.first)] if rank else []

    def apart(self, terms: Tensor) -> Tensor:
        """(S, *shape) to (S, k, n)."""
        k = self.shape[self.first] if self.shape else 1
        return to_order(terms, self._order).reshape(len(terms), k, terms[0].numel() // k)

    def together(self, columns: Tensor) -> Tensor:
        """(S, k, n) to (S, *shape), contiguous as PyTorch's results are."""
        sizes = [self.shape[d] for d in self._order]
        return from_order(columns.reshape(len(columns), *sizes), self._order).contiguous()


@dataclass(slots=True, repr=False)
class _Kept:
    """The softmax that belongs to a log-softmax: what it is made of, and itself once it was needed."""

    columns: _Columns
    weights: protocol.Weights
    value: Tensor | None = None

    def payload(self, value: Secret) -> Tensor:
        if self.value is None:
            self.value = self.columns.together(self.weights.probabilities(value.session.parties))
        return self.value


def softmax(x: SharedTensor, dim: int, half_to_float: bool = False) -> SharedTensor:
    """_softmax, see ``encml.mpc.functions.softmax``: 50 rounds and 2.6 kB a party for 10 entries."""
    parties, f = x.session.parties, x.session.fraction_bits

    def values(columns: _Columns, payload: Tensor, hidden: Tensor | None) -> Secret:
        return Secret(x.session, f, payload=columns.together(protocol.softmax(parties, payload, f, hidden)))

    return _along(x, dim, values)


def safe_softmax(x: SharedTensor, dim: int, dtype: torch.dtype | None = None) -> SharedTensor:
    """_safe_softmax: 0 where all entries are hidden, which ``softmax`` gives anyway."""
    return wrap(secret(softmax(x, dim)), supported_dtype(x, dtype or x.dtype))


def log_softmax(x: SharedTensor, dim: int, half_to_float: bool = False) -> SharedTensor:
    """_log_softmax: x - max - log(sum). 47 rounds for 10 entries; keeps what its backward needs."""
    parties, f = x.session.parties, x.session.fraction_bits

    def values(columns: _Columns, payload: Tensor, hidden: Tensor | None) -> Secret:
        logs, weights = protocol.log_softmax(parties, payload, f, hidden)
        return Secret(x.session, f, payload=columns.together(logs)).keep(_SOFTMAX, _Kept(columns, weights))

    return _along(x, dim, values)


def log_softmax_and_slope(
    x: SharedTensor, dim: int, totals: SharedTensor | None
) -> tuple[SharedTensor, SharedTensor] | None:
    """``log_softmax``, and the softmax times ``totals`` (of size 1 along ``dim``) in the same rounds.

    None where something is hidden, or where there is so much that the rounds saved are not worth the bytes.
    """
    held, session = secret(x), x.session
    if held.fact(HIDDEN) is not None or not 0 < x.numel() <= AT_ONCE or not x.dtype.is_floating_point:
        return None
    columns, f = _Columns.of(x, dim), session.fraction_bits
    settle_all(held, *(() if totals is None else (secret(totals),)))
    payload, rows = columns.apart(held.settle().at_bits(f)), None
    if totals is not None:
        rows = _Columns.of(totals, dim).apart(secret(totals).settle().at_bits(f))[:, 0]
    logs, weights, slope = protocol.log_softmax_and_slope(session.parties, payload, f, rows)
    found = Secret(session, f, payload=columns.together(logs)).keep(_SOFTMAX, _Kept(columns, weights))
    return wrap(found, x.dtype), wrap(Secret(session, f, payload=columns.together(slope)), x.dtype)


def _along(x: SharedTensor, dim: int, values: Callable[[_Columns, Tensor, Tensor | None], Secret]) -> SharedTensor:
    """``values`` of x's columns along ``dim``, their payload at f fraction bits, and which entries are hidden."""
    if not x.dtype.is_floating_point:
        raise UnsupportedOperation(f"softmax of {x.dtype}: expected floating point; convert it with .float() first")
    columns, held = _Columns.of(x, dim), secret(x)
    if not x.numel():
        return wrap(Secret(x.session, 0, payload=held.payload.contiguous()), x.dtype)
    hidden = held.fact(HIDDEN)
    payload = columns.apart(held.settle().at_bits(x.session.fraction_bits))
    return wrap(values(columns, payload, None if hidden is None else columns.apart(hidden[None])[0]), x.dtype)


def softmax_backward(gradient: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> SharedTensor:
    """_softmax_backward_data: p (g - sum p g), with p = output. 3 rounds once both are settled; pending."""
    session = session_of(gradient, output)
    settle_all(*(secret(x) for x in (gradient, output) if isinstance(x, SharedTensor)))
    inner = sum_dims(mul(output, gradient), (dim,), True)
    given = wrap(as_secret(gradient, session), output.dtype)
    return _contiguous(mul(output, sub(given, inner)), input_dtype)


def log_softmax_backward(gradient: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> SharedTensor:
    """_log_softmax_backward_data: g - p sum g. 3 rounds, in which p = exp(output) is taken from what forward kept."""
    session = session_of(gradient, output)
    given = wrap(as_secret(gradient, session), output.dtype)
    total = sum_dims(given, (dim,), True)
    kept = _kept(output, dim)
    if kept is None:
        weights = torch.exp(output)
    else:
        payload, _ = session.parties.together(lambda: kept.payload(secret(output)), secret(total).settle)
        weights = wrap(Secret(session, session.fraction_bits, payload=payload), output.dtype)
    return _contiguous(sub(given, mul(weights, total)), input_dtype)


def softmax_of(output: SharedTensor, dim: int) -> SharedTensor:
    """The softmax along ``dim`` that belongs to a log-softmax: 3 rounds once, 10.75 B a party and element."""
    kept = _kept(output, dim)
    if kept is None:
        return wrap(secret(torch.exp(output)), output.dtype)
    return wrap(
        Secret(output.session, output.session.fraction_bits, payload=kept.payload(secret(output))), output.dtype
    )


def _kept(output: Tensor, dim: int) -> _Kept | None:
    kept: _Kept | None = secret(output).fact(_SOFTMAX) if isinstance(output, SharedTensor) else None
    return kept if kept is not None and kept.columns == _Columns.of(output, dim) else None


def _contiguous(x: SharedTensor, dtype: torch.dtype) -> SharedTensor:
    return wrap(secret(x).linear(lambda terms: terms.contiguous()), supported_dtype(x, dtype))


def logsumexp(input: SharedTensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """logsumexp over one or more dimensions: x_0 - log_softmax(x)_0, whose derivative needs no exp. Differentiable."""
    dims = sorted({axis(input, d) - 1 for d in ([dim] if isinstance(dim, int) else dim)} or range(input.ndim))
    if not input.ndim:
        return input.clone()
    columns: Tensor = input
    first = dims[0]
    if len(dims) > 1:
        first, kept = 0, [d for d in range(input.ndim) if d not in dims]
        columns = input.permute(*dims, *kept).flatten(0, len(dims) - 1)
    result = (columns - torch.log_softmax(columns, first)).select(first, 0).contiguous()
    for d in dims if keepdim else ():
        result = result.unsqueeze(d)
    return result


def logcumsumexp(input: SharedTensor, dim: int) -> Tensor:
    """logcumsumexp of n entries: n logsumexp, of each entry and all before it. Differentiable."""
    if not input.numel() or not input.ndim:
        return input.clone()
    rows = input.movedim(dim, -1)
    later = torch.ones((input.shape[dim],) * 2, dtype=torch.bool).triu(1)
    each = rows.unsqueeze(-2).expand(*rows.shape, rows.shape[-1]).masked_fill(later, -math.inf)
    return torch.logsumexp(each, -1).movedim(-1, dim).contiguous()
