"""No example's clipped gradient is longer than the declared sensitivity, whatever its activations and errors are.

The gradients are exact integers here: Python's own, of the integers that the parties hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from encml.errors import PrivacyError
from encml.mpc.parties import Parties
from encml.net.local import LocalTransport
from encml.privacy.grid import MAX_REACH, Grid
from encml.privacy.layers import Layer, layers_of
from encml.privacy.per_example import Captured, clipped_sums, factors_of

KEY = b"a public key of 16"[:16]
Sizes = tuple[int, ...]
Network = tuple[Callable[[], nn.Module], Sizes, Sizes, str]
LAYERS: dict[str, Network] = {
    "linear": (lambda: nn.Linear(9, 4), (9,), (4,), "one place"),
    "linear without bias": (lambda: nn.Linear(9, 4, bias=False), (9,), (4,), "one place"),
    "sequence, gram": (lambda: nn.Linear(9, 4), (3, 9), (3, 4), "gram"),
    "sequence, whole": (lambda: nn.Linear(3, 2), (4, 5, 3), (4, 5, 2), "whole"),
    "convolution, whole": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 6, 5), (3, 6, 5), "whole"),
    "convolution, gram": (lambda: nn.Conv2d(4, 6, 3), (4, 4, 4), (6, 2, 2), "gram"),
    "convolution in groups, gram": (
        lambda: nn.Conv2d(4, 6, (2, 3), stride=2, padding=(0, 1), dilation=(2, 1), groups=2, bias=False),
        (4, 5, 5),
        (6, 2, 3),
        "whole",
    ),
    "depthwise, gram": (lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 4, 3), (8, 2, 1), "gram"),
}


def parties() -> Parties:
    return Parties(LocalTransport(), seed=5)


def shared(values: Tensor, seed: int = 3) -> Tensor:
    """A payload with uniform shares."""
    generator = torch.Generator().manual_seed(seed)
    high, low = torch.randint(0, 2**32, (2, 2, *values.shape), generator=generator)
    first, second = (high << 32) | low
    return torch.stack([first, second, values - first - second])


def layer(make: Callable[[], nn.Module]) -> Layer:
    ((_, found),) = layers_of(make())
    return found


def caught(one: Layer, activations: Tensor, errors: Tensor) -> Captured:
    return Captured(one, shared(activations), shared(errors, 4))


def squared_norm(one: Layer, a: Tensor, e: Tensor, fraction_bits: int) -> int:
    """|G|^2 of one example, exactly, at 4f fraction bits: columns and rows are moves of elements."""
    columns = np.array(one.columns(a[None, None])[0, 0].tolist(), dtype=object)
    rows = np.array(one.rows(e[None, None])[0, 0].tolist(), dtype=object)
    weight = rows.swapaxes(-1, -2) @ columns
    total = (weight * weight).sum()
    if one.bias:
        bias = rows.sum(-2) * 2**fraction_bits
        total += (bias * bias).sum()
    return int(total)


def check(batch: Sequence[tuple[Layer, Tensor, Tensor]], grid: Grid, seed: int = 5) -> list[tuple[int, float]]:
    """Asserts c |G| <= sensitivity for every example; returns each c and |g|."""
    captured = [caught(one, a, e) for one, a, e in batch]
    factors = factors_of(Parties(LocalTransport(), seed=seed), captured, grid, KEY).sum(0).tolist()
    found = []
    for i, c in enumerate(factors):
        square = sum(squared_norm(one, a[i], e[i], grid.fraction_bits) for one, a, e in batch)
        # |c G| at 2f + factor_bits fraction bits.
        assert Fraction(c * c * square) <= grid.sensitivity**2
        assert 0 <= c <= 2**grid.factor_bits
        found.append((c, math.sqrt(square) / 4.0**grid.fraction_bits))
    return found


def integers(shape: Sequence[int], seed: int, scale: float) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return values.round().clamp(-(2.0**62), 2.0**62).long()


# The bound ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_norms_are_taken_in_the_form_that_sends_less(name: str) -> None:
    make, inputs, outputs, form = LAYERS[name]
    found = caught(layer(make), torch.zeros(1, *inputs).long(), torch.zeros(1, *outputs).long())
    assert found.form == form


@pytest.mark.parametrize("clip", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("name", LAYERS)
def test_factors_are_right_and_never_too_large(name: str, clip: float) -> None:
    """From nothing to 100 C (10 C where factors have few digits): within 3 % of min(1, C/|g|), and 1 below C."""
    make, inputs, outputs, _ = LAYERS[name]
    one, grid = layer(make), Grid.of(16, clip, 1.0, 100)
    n = 24
    a, e = integers((n, *inputs), 1, 2.0**16), integers((n, *outputs), 2, 2.0**16)
    norm = math.sqrt(squared_norm(one, a[0], e[0], 16)) / 4.0**16
    scales = clip / norm * 10.0 ** torch.linspace(-2.5, 2.0 if grid.reach == MAX_REACH else 1.0, n).double()
    e = (e.double() * scales.reshape(-1, *(1,) * len(outputs))).round().long()
    for c, length in check([(one, a, e)], grid):
        wanted = min(1.0, clip / length) if length else 1.0
        assert c / 2**grid.factor_bits >= wanted * 0.97 - 4 / 2**grid.factor_bits
        if length < 0.97 * clip:
            assert c == 2**grid.factor_bits


@pytest.mark.parametrize("name", LAYERS)
def test_a_gradient_of_exactly_c_keeps_within_it(name: str) -> None:
    make, inputs, outputs, _ = LAYERS[name]
    one = layer(make)
    a, e = integers((1, *inputs), 3, 2.0**15), integers((1, *outputs), 4, 2.0**14)
    norm = math.sqrt(squared_norm(one, a[0], e[0], 16)) / 4.0**16
    for factor in (1 - 2.0**-20, 1.0, 1 + 2.0**-20):
        for seed in range(3):
            check([(one, a, e)], Grid.of(16, norm * factor, 0.0, 100), seed)


def test_examples_that_would_wrap_around_are_left_out() -> None:
    """Squares of these vanish modulo 2^64, or come out small: without the check each would pass for a short one."""
    one, grid = layer(lambda: nn.Linear(8, 3)), Grid.of(16, 1.0, 1.0, 100)
    a, e = torch.zeros(9, 8).long(), torch.full((9, 3), 2**10)
    a[0], a[1, 3], a[2], a[3, 0] = 2**32, -(2**63), 2**48, 2**63 - 1
    a[4, 5], a[5] = 2**40, 2**31 + 2**16
    e[6], e[7, 1], e[8] = 2**32, -(2**63), 2**31
    assert [c for c, _ in check([(one, a, e)], grid)] == [0] * 9
    assert ((a * a).sum(1)[:4].abs() <= 1).all()


def test_examples_beyond_the_limits_are_left_out_and_those_within_are_not() -> None:
    one, grid = layer(lambda: nn.Linear(8, 3)), Grid.of(16, 1.0, 1.0, 100)
    most_a, most_e = grid.limits([8])
    edges = [(0.98, 0.98, True), (1.02, 0.01, False), (0.01, 1.02, False), (0.98, 0.01, True)]
    a, e = torch.zeros(len(edges), 8).long(), torch.zeros(len(edges), 3).long()
    for i, (part_a, part_e, _) in enumerate(edges):
        a[i, 0] = int(math.sqrt(part_a * most_a * 2.0**-grid.activation_bits) * 2**16)
        e[i, 0] = int(math.sqrt(part_e * most_e * 2.0**-grid.error_bits) * 2**16)
    assert [c > 0 for c, _ in check([(one, a, e)], grid)] == [kept for *_, kept in edges]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_no_example_exceeds_the_sensitivity(data: st.DataObject) -> None:
    """Any layers, clipping norms, fraction bits and magnitudes, entries that leave the ring among them."""
    names = data.draw(st.lists(st.sampled_from(list(LAYERS)), min_size=1, max_size=2))
    bits = data.draw(st.integers(8, 17))
    grid = Grid.of(bits, data.draw(st.floats(0.03, 15.0)), data.draw(st.floats(0, 1.5)), 40)
    batch, seed = [], data.draw(st.integers(0, 1000))
    for name in names:
        make, inputs, outputs, _ = LAYERS[name]
        parts = []
        for shape in (inputs, outputs):
            values = torch.stack([integers(shape, seed + i, 2.0 ** data.draw(st.floats(-2, 40))) for i in range(3)])
            if data.draw(st.integers(0, 4)) == 0:
                place = data.draw(st.integers(0, values[0].numel() - 1))
                values[0].view(-1)[place] = data.draw(st.integers(-(2**63), 2**63 - 1))
            parts.append(values)
        batch.append((layer(make), *parts))
    check(batch, grid, seed)


def test_without_the_norm_check_an_example_would_exceed_the_sensitivity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "encml.privacy.per_example.beyond", lambda parties, vectors, key: torch.zeros(vectors.shape[:2]).long()
    )
    a, e = torch.zeros(1, 8).long(), torch.full((1, 3), 2**10)
    a[0, 0] = 2**48
    with pytest.raises(AssertionError):
        check([(layer(lambda: nn.Linear(8, 3)), a, e)], Grid.of(16, 1.0, 1.0, 100))


# Sums --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_sums_are_exact(name: str) -> None:
    """sum_i c_i G_i, integer for integer, in PyTorch's layout of weight and bias."""
    make, inputs, outputs, _ = LAYERS[name]
    module = make()
    ((_, one),) = layers_of(module)
    a, e = integers((5, *inputs), 1, 2.0**14), integers((5, *outputs), 2, 2.0**14)
    grid, batch = Grid.of(16, 1.0, 1.0, 100), [caught(one, a, e)]
    factors = factors_of(parties(), batch, grid, KEY).sum(0)
    assert (factors > 0).all()
    rows = clipped_sums(parties(), batch, grid, KEY)
    module = module.double()
    x = a.double()
    output = module(x)
    scaled = e * factors.view(-1, *(1,) * len(outputs))
    expected = torch.autograd.grad(output, list(module.parameters()), scaled.double())
    assert len(rows) == len(expected)
    for row, gradient, extra in zip(rows, expected, (0, grid.fraction_bits), strict=False):
        assert torch.equal(row.sum(0), (gradient.round().long()) << extra)


def test_whether_activations_or_errors_are_scaled_makes_no_difference() -> None:
    one = layer(lambda: nn.Linear(4, 40))
    a, e = integers((5, 4), 1, 2.0**14), integers((5, 40), 2, 2.0**12)
    grid, batch = Grid.of(16, 1.0, 1.0, 100), [caught(one, a, e)]
    factors = factors_of(parties(), batch, grid, KEY).sum(0)
    weight, bias = clipped_sums(parties(), batch, grid, KEY)
    assert torch.equal(weight.sum(0), (e * factors[:, None]).T @ a)
    assert torch.equal(bias.sum(0), (e * factors[:, None]).sum(0) << 16)


@pytest.mark.parametrize("name", LAYERS)
def test_it_costs_what_it_says(name: str) -> None:
    make, inputs, outputs, form = LAYERS[name]
    one, n = layer(make), 64
    batch = [caught(one, integers((n, *inputs), 1, 2.0**12), integers((n, *outputs), 2, 2.0**12))]
    session = parties()
    with session.ledger.measure() as spent:
        clipped_sums(session, batch, Grid.of(16, 1.0, 1.0, 100), KEY)
    assert spent[0].rounds == 25
    places = batch[0].places
    formed = {"one place": 0, "gram": one.groups * places * (places + 1), "whole": one.size}[form]
    declared = 4_430 + 31 * 48 + 8 * min(math.prod(inputs), math.prod(outputs)) + 9.7 * formed + 150
    assert spent[0].bytes / 3 / n == pytest.approx(declared, rel=0.03)


# What is refused ---------------------------------------------------------------------------------------------------


def test_grids_that_do_not_fit_are_refused() -> None:
    for bits, clip, noise, batch in (
        (24, 1.0, 1.0, 64),
        (16, 200.0, 1.0, 64),
        (16, 1e-6, 1.0, 64),
        (16, 1.0, 1.0, 10**6),
    ):
        with pytest.raises(PrivacyError, match="does not fit the ring"):
            Grid.of(bits, clip, noise, batch)


@settings(deadline=None, max_examples=200)
@given(st.integers(5, 17), st.floats(0.01, 50.0), st.floats(0, 3), st.integers(1, 1000), st.integers(1, 10**6))
def test_whatever_a_grid_allows_fits_the_ring(bits: int, clip: float, noise: float, batch: int, size: int) -> None:
    try:
        grid = Grid.of(bits, clip, noise, batch)
    except PrivacyError:
        return
    assert grid.sensitivity <= Fraction(clip) * 2**grid.sum_bits
    assert (batch + 19 * noise) * clip * 2.0**grid.sum_bits < 2.0**62
    assert grid.activation_bits + grid.error_bits == 2 * grid.norm_bits
    assert max(grid.activation_bits, grid.error_bits, grid.norm_bits) <= 2 * bits
    a, e = grid.limits([size])
    assert a * e <= 2 ** (grid.top - 1) * 1.001
    assert grid.top <= 61


def test_layers_with_too_many_places_are_refused() -> None:
    one, grid = layer(lambda: nn.Linear(2000, 2000)), Grid.of(16, 1.0, 1.0, 100)
    zeros = torch.zeros(1, 1, 1).long()
    huge = Captured(one, zeros.expand(3, 1, 2**19, 2000), zeros.expand(3, 1, 2**19, 2000))
    with pytest.raises(PrivacyError, match="too large to clip"):
        factors_of(parties(), [huge], grid, KEY)


def test_gradients_that_are_taken_whole_have_a_margin() -> None:
    coarse = replace(Grid.of(16, 1.0, 1.0, 100), norm_bits=3)
    one = layer(LAYERS["sequence, whole"][0])
    with pytest.raises(PrivacyError, match="too inexact"):
        factors_of(
            parties(), [caught(one, torch.zeros(1, 4, 5, 3).long(), torch.zeros(1, 4, 5, 2).long())], coarse, KEY
        )
