"""Scaled-dot-product attention, multi-head attention and what masks them, as differentiable operations.

Masks are public as a rule: True and False, or numbers to add, of which minus infinity (or the least number of the
dtype) hides an entry. What a public mask hides costs no exponential and weighs 0 exactly; a query for which everything
is hidden gets 0. Masks may be secret: bools, or finite numbers to add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.errors import InvalidTensor, UnsupportedOperation
from encml.ring.fixed import bound
from encml.tensor.functions.common import settle_together
from encml.tensor.handlers.attention import HIDDEN, logcumsumexp, logsumexp
from encml.tensor.shared import SharedTensor, secret


@dataclass(frozen=True, slots=True)
class _Mask:
    """What is hidden, public bools; and what is added to the scores. Both broadcast to the scores, or are None."""

    hidden: Tensor | None = None
    added: Tensor | None = None

    @classmethod
    def of(cls, mask: Tensor | None, true_hides: bool) -> _Mask:
        if mask is None:
            return cls()
        if isinstance(mask, SharedTensor):
            if mask.dtype != torch.bool:
                return cls(added=mask)
            chosen = mask.to(torch.get_default_dtype())
            return cls(added=(chosen if true_hides else 1 - chosen) * _lowest(mask))
        if mask.dtype == torch.bool:
            return cls(mask if true_hides else ~mask)
        hidden = mask <= torch.finfo(mask.dtype).min
        added = mask.masked_fill(hidden, 0)
        return cls(hidden if bool(hidden.any()) else None, added if bool(added.any()) else None)

    def __and__(self, other: _Mask) -> _Mask:
        """Both masks at once."""
        return _Mask(_both(torch.logical_or, self.hidden, other.hidden), _both(torch.add, self.added, other.added))

    def reshape(self, shape: Callable[[Tensor], Tensor]) -> _Mask:
        return _Mask(*(None if part is None else shape(part) for part in (self.hidden, self.added)))

    def widened(self) -> _Mask:
        """For one more key, at the end, that everything may look at."""
        return self.reshape(lambda part: torch.cat([part, part.new_zeros((*part.shape[:-1], 1))], -1))


def _both(join: Callable[[Tensor, Tensor], Tensor], a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return join(a, b)


def _lowest(x: SharedTensor) -> float:
    """Half of the range's lower end: what minus infinity becomes."""
    return -bound(x.session.fraction_bits) / 2


def _hides(x: Any, mask: Any, value: Any) -> bool:
    """Whether ``value`` by a public mask takes entries of the secret x out of a softmax."""
    if not isinstance(x, SharedTensor) or isinstance(mask, SharedTensor) or not x.is_floating_point():
        return False
    if isinstance(value, Tensor) and (isinstance(value, SharedTensor) or value.ndim):
        return False
    return bool(value <= torch.finfo(x.dtype).min)


def _fill(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """masked_fill or masked_fill_: with minus infinity the result remembers what a softmax may leave out."""

    def fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
        hides = _hides(input, mask, value)
        with torch._C.DisableTorchFunctionSubclass():
            result = function(input, mask, _lowest(input) if hides and isinstance(input, SharedTensor) else value)
        if hides and isinstance(result, SharedTensor):
            secret(result).keep(HIDDEN, mask.expand(result.shape).clone())
        return result

    return fill


masked_fill, masked_fill_ = _fill(torch.Tensor.masked_fill), _fill(torch.Tensor.masked_fill_)


def where(condition: Tensor, *values: Any, **named: Any) -> Any:
    """torch.where; minus infinity for one of the two is a masked_fill of the other."""
    if len(values) == 2:
        x, y = values
        if _hides(x, condition, y) and _fits(condition, x):
            return masked_fill(x, ~condition, y)
        if _hides(y, condition, x) and _fits(condition, y):
            return masked_fill(y, condition, x)
    with torch._C.DisableTorchFunctionSubclass():
        return torch.where(condition, *values, **named)


def _fits(mask: Tensor, x: Tensor) -> bool:
    shape: torch.Size = torch.broadcast_shapes(mask.shape, x.shape)  # type: ignore[no-untyped-call]
    return shape == x.shape


def _where(input: Tensor, condition: Tensor, other: Any) -> Any:
    """Tensor.where"""
    return where(condition, input, other)


def _weights(query: Tensor, key: Tensor, mask: _Mask, scale: float | None) -> Tensor:
    """softmax(scale * query @ key^T), (..., L, S)."""
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if mask.added is not None:
        scores = scores + mask.added
    if mask.hidden is not None:
        scores = scores.masked_fill(mask.hidden, -math.inf)
    return torch.softmax(scores, -1)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """F.scaled_dot_product_attention of (..., L, E), (..., S, E) and (..., S, V): (..., L, V), pending.

    A scale that is a power of two, as for E = 4, 16, 64, 256, is free; any other takes 2 rounds. Then 3 rounds settle
    query, key and value together, 3 the scores, and the softmax follows: of a causal mask, half of the exponentials.
    """
    if enable_gqa:
        key, value = (_repeat_heads(x, query.shape[-3]) for x in (key, value))
    mask = _Mask.of(attn_mask, true_hides=False)
    if is_causal:
        if attn_mask is not None:
            raise InvalidTensor(
                "scaled_dot_product_attention: is_causal=True leaves no room for an attn_mask; give one"
            )
        mask = _Mask(torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril().logical_not())
    settle_together(query, key, value)
    weights = _weights(query, key, mask, scale)
    return (F.dropout(weights, dropout_p) if dropout_p > 0 else weights) @ value


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    """(..., H', S, E) to (..., heads, S, E): each head of keys or values serves as many heads of queries."""
    if heads % x.shape[-3]:
        raise InvalidTensor(f"enable_gqa: {heads} heads of queries, not a multiple of {x.shape[-3]} of keys")
    each = heads // x.shape[-3]
    return x.unsqueeze(-3).expand(*x.shape[:-2], each, *x.shape[-2:]).flatten(-4, -3)


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """F.multi_head_attention_forward, which nn.MultiheadAttention calls: (L, N, E) and weights (N, L, S).

    The three projections are settled in the same rounds. ``is_causal`` is only a hint, as the mask itself says it.
    """
    if static_k is not None or static_v is not None:
        raise UnsupportedOperation("multi_head_attention_forward: static_k and static_v; give key and value instead")
    if is_causal and attn_mask is None:
        raise InvalidTensor("multi_head_attention_forward: is_causal=True is a hint; expected the attn_mask as well")
    batched = query.ndim == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    length, batch, width = query.shape
    head = width // num_heads

    if use_separate_proj_weight:
        assert q_proj_weight is not None
        assert k_proj_weight is not None
        assert v_proj_weight is not None
        weights: Sequence[Tensor] = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        assert in_proj_weight is not None
        weights = in_proj_weight.chunk(3) if query is not key or key is not value else [in_proj_weight]
    q, k, v = _in_projection((query, key, value), weights, in_proj_bias)

    def as_scores(mask: Tensor) -> Tensor:
        """(L, S), (N * H, L, S) to (..., L, S) of the scores."""
        return mask if mask.ndim == 2 else mask.reshape(batch, num_heads, *mask.shape[-2:])

    mask = _Mask.of(attn_mask, true_hides=True).reshape(as_scores)
    mask &= _Mask.of(key_padding_mask, true_hides=True).reshape(lambda padding: padding[:, None, None])
    if bias_k is not None and bias_v is not None:
        k, v = torch.cat([k, bias_k.repeat(1, batch, 1)]), torch.cat([v, bias_v.repeat(1, batch, 1)])
        mask = mask.widened()
    if add_zero_attn:
        zero = torch.zeros((1, batch, width), dtype=k.dtype)
        k, v = torch.cat([k, zero]), torch.cat([v, zero])
        mask = mask.widened()

    q, k, v = (x.reshape(len(x), batch, num_heads, head).permute(1, 2, 0, 3) for x in (q, k, v))
    settle_together(q, k, v)
    shares = _weights(q, k, mask, None)
    if training and dropout_p > 0:
        shares = F.dropout(shares, dropout_p)
    mixed = (shares @ v).permute(2, 0, 1, 3).reshape(length, batch, width)
    output = F.linear(mixed, out_proj_weight, out_proj_bias)
    told: Tensor | None = None
    if need_weights:
        told = shares.mean(1) if average_attn_weights else shares
    if not batched:
        output, told = output.squeeze(1), None if told is None else told.squeeze(0)
    return output, told


def _in_projection(
    inputs: tuple[Tensor, Tensor, Tensor], weights: Sequence[Tensor], bias: Tensor | None
) -> Sequence[Tensor]:
    """Query, key and value, each projected by its own weights; by one product where they have them together."""
    if len(weights) == 1:
        return F.linear(inputs[0], weights[0], bias).chunk(3, -1)
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    return [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]


def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """logaddexp: logsumexp of two."""
    return torch.logsumexp(torch.stack(list(torch.broadcast_tensors(input, other))), 0)  # type: ignore[no-untyped-call]


def _no_nested_tensors(*_: object) -> bool:
    """Whether nn.TransformerEncoder may pack its input by lengths into a nested tensor: not of secrets.

    Its results in the padding, which mean nothing, are not 0 then.
    """
    return False


_torch: Any = torch

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
    F.multi_head_attention_forward: multi_head_attention,
    _torch._nested_tensor_from_mask_left_aligned: _no_nested_tensors,
    torch.Tensor.masked_fill: masked_fill,
    torch.masked_fill: masked_fill,
    torch.Tensor.masked_fill_: masked_fill_,
    torch.where: where,
    torch.Tensor.where: _where,
    torch.logsumexp: logsumexp,
    torch.special.logsumexp: logsumexp,
    torch.Tensor.logsumexp: logsumexp,
    torch.logcumsumexp: logcumsumexp,
    torch.Tensor.logcumsumexp: logcumsumexp,
    torch.logaddexp: logaddexp,
    torch.Tensor.logaddexp: logaddexp,
}
