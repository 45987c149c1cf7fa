"""Clipped sums of per-example gradients on shares, from each layer's activations and errors alone.

The gradient of example i in a layer that is linear in its weight is G_i = sum_t e_it (x) (a_it, 1) over its places t:
one place for a linear layer on rows, many for sequences, and for a convolution the windows. (a_it, 1) has the 1 for the
bias. Its squared norm is had without a second backward pass, and mostly without G_i itself (Goodfellow 2015, "Efficient
per-example gradient computations"; Li et al. 2022, "Large language models can be strong differentially private
learners"; Bu et al. 2022, "Scalable and efficient training of large convolutional neural networks with differential
privacy"):

* *one place*: |G|^2 = (|a|^2 + 1) |e|^2;
* *Gram*: |G|^2 = sum_st (a_s a_t + 1) (e_s e_t), from T (T + 1) / 2 numbers of each;
* *whole*: G itself, one number a weight.

Of the last two, the one with fewer numbers to send. Then sum_i c_i G_i, with c_i = min(1, C/|g_i|) over all layers, is
one product a layer, of c_i e_i or c_i a_i (whichever is smaller) and the other (Bu et al. 2023, "book-keeping").

**A norm is never too small.** All is integers, of known rounding. With u_a, u_e one unit of squared activations and
errors (see ``Grid``), every truncation being off by less than a unit:

* one place: (A + u_a) (E + u_e), A and E truncated;
* Gram: sum_st A_st E_st of truncated matrices is off by less than u_e sum_st |a_s a_t + 1| + u_a sum_st |e_s e_t| +
  u_a u_e T^2, and the sums are at most T times the traces (Cauchy and Schwarz, twice). That is added;
* whole: the d entries of all such layers are off by less than a unit each, their norm by sqrt(d) units at most, and so
  is |g|: C is taken sqrt(d) units smaller. (If min(1, C'/n) n <= C' then min(1, C'/n) (n + sqrt d) <= C' + sqrt d.)

**No norm wraps around.** Examples are left out, with c = 0, unless a check by random projections
(encml.privacy.wraparound) finds the integers of all their activations and errors together below 2^30.5, so that every
squared activation or error fits, and these are within ``Grid.limits``, so that |g|^2 <= sum_l |a_l|^2 |e_l|^2 fits. The
check errs with a probability of 2^-40 an example. Nobody learns which examples these are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from encml.errors import PrivacyError
from encml.mpc.comparison import negative, to_arithmetic
from encml.mpc.flags import both, inverted, packed, unpacked
from encml.mpc.functions.polynomial import constant
from encml.mpc.multiplication import product
from encml.mpc.parties import Parties
from encml.mpc.sharing import public
from encml.mpc.truncation import truncate_rows
from encml.privacy.clipping import clipping_factors
from encml.privacy.grid import Grid
from encml.privacy.layers import Layer
from encml.privacy.wraparound import beyond
from encml.ring.devices import beside
from encml.ring.kernels import matmul

_NAME = "per-example clipping"


@dataclass(frozen=True, eq=False)
class Captured:
    """One layer's activations (S, N, *in) and errors (S, N, *out) in a batch: payloads at f fraction bits."""

    layer: Layer
    activations: Tensor
    errors: Tensor

    def __repr__(self) -> str:
        return f"Captured({self.layer.name}, {tuple(self.activations.shape)}, {tuple(self.errors.shape)})"

    @property
    def places(self) -> int:
        """T: of how many outer products an example's gradient is the sum."""
        return self.layer.places(self.errors.shape[2:])

    @property
    def form(self) -> str:
        """How the norm is taken: "one place", "gram" or "whole"."""
        if self.places == 1 and self.layer.groups == 1:
            return "one place"
        return "gram" if self.layer.groups * self.places * (self.places + 1) < self.layer.size else "whole"


def clipped_sums(parties: Parties, batch: Sequence[Captured], grid: Grid, key: bytes) -> list[Tensor]:
    """The sum over the batch of clipped gradients: rows (P, *shape) of each layer's parameters, unmasked.

    They carry ``grid.sum_bits`` fraction bits; weight, then bias if there is one, layer by layer. Each example's part
    has a norm of at most ``grid.sensitivity``. ``key``: 16 public bytes, fresh, for the check. Reveals nothing: mask
    the rows before anybody else sees one.

    25 rounds. Bytes a party and example: 4.4 kB for the check, about 31 for each of some 48 comparisons with
    limits, 8 for each of the fewer of a layer's activations and errors, and about 10 for each number of a Gram matrix
    or a gradient that is formed. Raises PrivacyError if the layers are too large for the grid.
    """
    factors = factors_of(parties, batch, grid, key)
    scaled = parties.together(*(_scaling(parties, factors, one) for one in batch))
    rows: list[Tensor] = []
    for one, part in zip(batch, scaled, strict=True):
        pair = (part, one.errors) if _scales_activations(one) else (one.activations, part)
        rows.append(product(parties, one.layer.weight_sum, *pair))
        if one.layer.bias:
            sums = one.layer.rows(one.errors).sum(-2).flatten(2)
            # The 1 that the bias's gradient is a product with has f fraction bits.
            rows.append(product(parties, matmul, factors, sums) << grid.fraction_bits)
    return rows


def factors_of(parties: Parties, batch: Sequence[Captured], grid: Grid, key: bytes) -> Tensor:
    """c of every example, a payload (S, N) at ``grid.factor_bits``: min(1, C/|g|), not above; 0 for those left out.

    24 rounds. See ``clipped_sums``.
    """
    limits, margin = _limits(batch, grid), _margin(batch)
    bound = grid.clip - margin
    if bound < grid.clip * 3 // 4:
        raise PrivacyError(
            f"gradients of {margin**2:,} entries that are taken whole are too inexact at this clipping norm, "
            f"{grid.max_grad_norm:g}: use a larger norm, or more fraction bits"
        )
    squares, sizes = _squares(parties, batch, grid)
    factors, allowed = parties.together(
        lambda: clipping_factors(parties, squares, bound, factor_bits=grid.factor_bits, top=grid.top),
        lambda: _allowed(parties, batch, sizes, limits, key),
    )
    return parties.reshare(product(parties, torch.mul, factors, allowed), _NAME)


def _scales_activations(one: Captured) -> bool:
    return one.activations.numel() < one.errors.numel()


def _scaling(parties: Parties, factors: Tensor, one: Captured) -> Callable[[], Tensor]:
    """The smaller of a layer's activations and errors, each example's times its factor, exactly. 1 round."""
    values = one.activations if _scales_activations(one) else one.errors
    weights = factors.view(*factors.shape, *(1,) * (values.ndim - 2))
    return lambda: parties.reshare(product(parties, torch.mul, weights, values), _NAME)


# Squared norms -----------------------------------------------------------------------------------------------------


def _squares(parties: Parties, batch: Sequence[Captured], grid: Grid) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """|g|^2 (S, N), rounded up, at 2 norm_bits; and each layer's |a|^2 and |e|^2, rounded up, in their units. 4 rounds.

    "whole" layers are not rounded up; see ``_margin``.
    """
    wanted: list[tuple[Tensor, int]] = []
    for one in batch:
        for values, bits in ((one.activations, grid.activation_bits), (one.errors, grid.error_bits)):
            wanted.append((product(parties, _dots, values.flatten(2), values.flatten(2)), bits))
        if one.form == "gram":
            for terms, bits in (
                (one.layer.columns(one.activations), grid.activation_bits),
                (one.layer.rows(one.errors), grid.error_bits),
            ):
                wanted.append((product(parties, _gram, terms, terms), bits))
        elif one.form == "whole":
            wanted.append((_whole(parties, one, grid), grid.norm_bits))
    ready = iter(_rescaled(parties, wanted, 2 * grid.fraction_bits))

    shape = (parties.here, *batch[0].activations.shape[1:2])
    total = torch.zeros(shape, dtype=torch.int64, device=parties.device)
    sizes = []
    for one in batch:
        size = next(ready) + constant(parties, total, 1), next(ready) + constant(parties, total, 1)
        sizes.append(size)
        if one.form == "one place":
            bias = constant(parties, total, 1 << grid.activation_bits) if one.layer.bias else 0
            total += product(parties, torch.mul, size[0] + bias, size[1])
        elif one.form == "gram":
            total += _from_grams(parties, one, next(ready), next(ready), grid)
        else:
            gradient = next(ready)
            total += product(parties, _dots, gradient, gradient)
    return parties.reshare(total, _NAME), sizes


def _dots(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1)


def _gram(x: Tensor, y: Tensor) -> Tensor:
    """The upper triangles (N, G, T (T + 1) / 2) of x y' for x and y (N, G, T, K), row by row."""
    products = matmul(x, y.transpose(-1, -2))
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2])
    return products[..., i, j]


def _from_grams(parties: Parties, one: Captured, a: Tensor, e: Tensor, grid: Grid) -> Tensor:
    """sum_st A_st E_st, rounded up, as rows (P, N): of upper triangles (S, N, G, .), the bias's 1 not in them yet."""
    places = one.places
    if one.layer.bias:
        a = a + constant(parties, a, 1 << grid.activation_bits)
    i, j = torch.triu_indices(places, places)
    diagonal = i == j
    rows = product(parties, _dots, a * beside(a, torch.where(diagonal, 1, 2)), e).sum(-1)
    traces = (a[..., diagonal] + e[..., diagonal]).sum((-1, -2))
    # Each trace is off by less than T units, in each group.
    slack = one.layer.groups * places * (places + 2 * places)
    return rows + (places * traces + constant(parties, traces, slack))[: parties.here]


def _whole(parties: Parties, one: Captured, grid: Grid) -> Tensor:
    """Each example's gradient of weight and bias, flat, as rows (P, N, d) at 2f fraction bits."""
    columns, rows = one.layer.columns(one.activations), one.layer.rows(one.errors)
    weight = product(parties, lambda x, y: matmul(y.transpose(-1, -2), x), columns, rows).flatten(2)
    if not one.layer.bias:
        return weight
    return torch.cat([weight, rows.sum(-2).flatten(2)[: parties.here] << grid.fraction_bits], 2)


def _margin(batch: Sequence[Captured]) -> int:
    """By how many units of a norm the gradients that are taken whole may be off, all together."""
    entries = sum(one.layer.size for one in batch if one.form == "whole")
    return math.isqrt(entries - 1) + 1 if entries else 0


def _rescaled(parties: Parties, rows: Sequence[tuple[Tensor, int]], present: int) -> list[Tensor]:
    """Payloads of rows at ``present`` fraction bits, each with the bits asked for. 3 rounds for all of them."""
    places: dict[int, list[int]] = {}
    for place, (_, bits) in enumerate(rows):
        places.setdefault(present - bits, []).append(place)
    found: list[Tensor] = [rows[0][0]] * len(rows)

    def settle(shift: int) -> None:
        chosen = [rows[place][0] for place in places[shift]]
        joined = torch.cat([part.reshape(parties.here, -1) for part in chosen], 1)
        if shift > 0:
            payload = truncate_rows(parties, joined, shift, _NAME)
        else:
            payload = parties.reshare(joined, _NAME) << -shift
        parts = torch.split(payload, [part[0].numel() for part in chosen], 1)
        for place, part, like in zip(places[shift], parts, chosen, strict=True):
            found[place] = part.reshape(len(payload), *like.shape[1:])

    parties.together(*(partial(settle, shift) for shift in places))
    return found


# Who is left out ---------------------------------------------------------------------------------------------------


def _allowed(
    parties: Parties,
    batch: Sequence[Captured],
    sizes: Sequence[tuple[Tensor, Tensor]],
    limits: tuple[int, int],
    key: bytes,
) -> Tensor:
    """1 for every example whose norm does not wrap around, 0 for the others: a payload (S, N). 19 rounds."""
    a = torch.stack([one.layer.overlap * size for one, (size, _) in zip(batch, sizes, strict=True)]).sum(0)
    e = torch.stack([size for _, size in sizes]).sum(0)
    vectors = torch.cat([part.flatten(2) for one in batch for part in (one.activations, one.errors)], 2)

    def beyond_limits() -> Tensor:
        room = public(parties, torch.tensor(limits).expand(a.shape[1], 2)) - torch.stack([a, e], -1)
        outside = unpacked(negative(parties, room, operation=_NAME))
        return both(parties, inverted(parties, outside[..., 0]), inverted(parties, outside[..., 1]), _NAME)

    within, wrapping = parties.together(beyond_limits, lambda: beyond(parties, vectors, key))
    inside = inverted(parties, (wrapping & 1).to(torch.uint8))
    return to_arithmetic(parties, packed(both(parties, within, inside, _NAME)), _NAME)


def _limits(batch: Sequence[Captured], grid: Grid) -> tuple[int, int]:
    """The largest |a|^2, less what the biases add, and |e|^2, in their units."""
    a, e = grid.limits([one.layer.overlap * one.activations[0, 0].numel() for one in batch])
    ones = sum(one.places for one in batch if one.layer.bias)
    left = a - (ones << grid.activation_bits)
    # Gram matrices are rounded up, those taken whole may have been rounded up: the sum stays below 2^top.
    margins = sum(one.places * (2 * (a + e) + 4 * one.layer.groups * one.places) for one in batch if one.form == "gram")
    root = math.isqrt(a * e) + 1 + _margin(batch)
    if left <= 0 or root * root + margins >= 1 << grid.top:
        raise PrivacyError(
            f"layers of {sum(one.places for one in batch):,} places are too large to clip per example at norm "
            f"{grid.max_grad_norm:g}; use strides or pooling to make the images smaller"
        )
    return left, e
