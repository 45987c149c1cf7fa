"""What sharing, products and truncation promise, against arithmetic with Python integers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_ring import RING, SHAPES, in_process, opened, random_ring, ring, split, split_bits, wrap
from torch import Tensor

from encml.mpc import sharing
from encml.mpc.multiplication import and_bits, product
from encml.mpc.parties import Parties
from encml.mpc.truncation import MAX_SHIFT, truncate, truncate_rows

LIMIT = 2**62


# Sharing ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(RING, max_size=70), st.integers(0, 2), st.integers(0, 2))
def test_opening_what_was_shared_gives_it_back(values: list[int], owner: int, receiver: int) -> None:
    parties = in_process()
    payload = sharing.share_from(parties, owner, ring(values), (len(values),))
    assert opened(payload).tolist() == values
    assert sharing.open_to_all(parties, payload).tolist() == values
    got = sharing.open_to(parties, payload, receiver)
    assert got is not None
    assert got.tolist() == values


@pytest.mark.parametrize("shape", SHAPES)
def test_sharing_keeps_shapes(shape: tuple[int, ...]) -> None:
    parties, values = in_process(), random_ring(shape, 5)
    for payload in [sharing.share_from(parties, 1, values, shape), sharing.public(parties, values)]:
        assert payload.shape == (3, *shape)
        assert torch.equal(sharing.open_to_all(parties, payload), values)
        assert torch.equal(opened(payload), values)


def test_sharing_a_view_does_not_alias_it() -> None:
    parties, values = in_process(), random_ring((4, 6), 5)
    views = [values.t(), values[::2, 1::3], values[:, :1].expand(4, 5)]
    before = [view.clone() for view in views]
    payloads = [sharing.share_from(parties, 2, view, view.shape) for view in views]
    payloads += [sharing.public(parties, view) for view in views]
    values.zero_()
    for payload, expected in zip(payloads, before * 2, strict=True):
        assert torch.equal(sharing.open_to_all(parties, payload), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_of_zero_cancel(shape: tuple[int, ...]) -> None:
    parties = in_process()
    rows = parties.zero(shape)
    assert rows.shape == (3, *shape)
    assert not rows.sum(0).any()
    if rows.numel():
        assert rows.all()


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("xor", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_resharing_a_pair(first: int, xor: bool, shape: tuple[int, ...]) -> None:
    left, right = random_ring((2, *shape), 8)
    payload = in_process().reshare_pair(first, left, right, shape, "test", xor=xor)
    total = payload[0] ^ payload[1] ^ payload[2] if xor else opened(payload)
    assert torch.equal(total, left ^ right if xor else left + right)


# Products --------------------------------------------------------------------------------------------------------


def naive_matmul(x: Tensor, y: Tensor) -> Tensor:
    rows = [[wrap(sum(a * b for a, b in zip(r, c, strict=True))) for c in y.t().tolist()] for r in x.tolist()]
    return torch.tensor(rows, dtype=torch.int64).view(len(x), y.shape[1])


def naive_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Valid cross-correlation, one output at a time."""
    n, _, height, width = x.shape
    filters, _, kh, kw = weight.shape
    out = torch.zeros(n, filters, height - kh + 1, width - kw + 1, dtype=torch.int64)
    for where in torch.cartesian_prod(*(torch.arange(size) for size in out.shape)).tolist():
        b, f, i, j = where
        patch, kernel = x[b, :, i : i + kh, j : j + kw].reshape(-1).tolist(), weight[f].reshape(-1).tolist()
        out[b, f, i, j] = wrap(sum(p * k for p, k in zip(patch, kernel, strict=True)))
    return out


def multiply(parties: Parties, f: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return parties.reshare(product(parties, f, x, y), "test")


@settings(deadline=None)
@given(st.lists(st.tuples(RING, RING), max_size=70))
def test_product_of_any_ring_elements(pairs: list[tuple[int, int]]) -> None:
    parties = in_process()
    x, y = (split(parties, ring([pair[i] for pair in pairs]), i) for i in (0, 1))
    expected = [wrap(a * b) for a, b in pairs]
    rows = product(parties, torch.mul, x, y)
    assert sharing.open_to_all(parties, parties.reshare(rows, "test")).tolist() == expected
    assert parties.open_rows(rows, "test").tolist() == expected


@pytest.mark.parametrize(
    ("one", "two"), [((), ()), ((0,), (0,)), ((3, 1), (1, 4)), ((5,), ()), ((2, 3, 4), (4,)), ((1,), (0,))]
)
def test_products_broadcast(one: tuple[int, ...], two: tuple[int, ...]) -> None:
    parties, a, b = in_process(), random_ring(one, 1), random_ring(two, 2)
    got = opened(multiply(parties, torch.mul, split(parties, a, 3), split(parties, b, 4)))
    expected = [
        wrap(p.item() * q.item()) for p, q in zip(*(t.reshape(-1) for t in torch.broadcast_tensors(a, b)), strict=True)
    ]
    assert got.shape == torch.broadcast_shapes(one, two)
    assert got.reshape(-1).tolist() == expected


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 5, 2), (2, 0, 3), (0, 4, 1)])
def test_matmul(m: int, k: int, n: int) -> None:
    parties, a, b = in_process(), random_ring((m, k), 1), random_ring((n, k), 2).t()
    got = opened(multiply(parties, torch.matmul, split(parties, a, 3), split(parties, b, 4)))
    assert torch.equal(got, naive_matmul(a, b))


def test_matmul_of_transposed_payloads() -> None:
    parties, a, b = in_process(), random_ring((5, 3), 1), random_ring((2, 5), 2)
    x, y = split(parties, a, 3).transpose(1, 2), split(parties, b, 4).transpose(1, 2)
    assert torch.equal(opened(multiply(parties, torch.matmul, x, y)), naive_matmul(a.t(), b.t()))


def test_convolution_is_one_bilinear_map() -> None:
    parties, image, weight = in_process(), random_ring((2, 3, 5, 4), 1), random_ring((4, 3, 3, 2), 2)
    got = multiply(parties, F.conv2d, split(parties, image, 3), split(parties, weight, 4))
    assert torch.equal(opened(got), naive_conv(image, weight))


def test_products_of_payloads_with_zero_shares() -> None:
    """A public value has two shares of zero; nothing may rely on shares being random."""
    parties, a, b = in_process(), random_ring((9,), 1), random_ring((9,), 2)
    open_a, open_b, secret_b = sharing.public(parties, a), sharing.public(parties, b), split(parties, b, 4)
    assert torch.equal(opened(multiply(parties, torch.mul, open_a, secret_b)), a * b)
    assert torch.equal(opened(multiply(parties, torch.mul, open_a, open_b)), a * b)


def test_a_payload_adds_to_rows_as_one_share_a_party() -> None:
    parties, a, b, c = in_process(), random_ring((9,), 1), random_ring((9,), 2), random_ring((9,), 3)
    rows = product(parties, torch.mul, split(parties, a), split(parties, b)) + split(parties, c)[: parties.here]
    assert torch.equal(opened(parties.reshare(rows, "test")), a * b + c)


@settings(deadline=None)
@given(st.lists(st.tuples(RING, RING), max_size=5))
def test_and_of_words(pairs: list[tuple[int, int]]) -> None:
    parties = in_process()
    shares = random_ring((2, 2, len(pairs)), 3)
    payloads = []
    for i in (0, 1):
        words = ring([pair[i] for pair in pairs])
        payloads.append(parties.assemble([shares[i, 0], shares[i, 1], words ^ shares[i, 0] ^ shares[i, 1]]))
    z = and_bits(parties, *payloads, "test")
    assert (z[0] ^ z[1] ^ z[2]).tolist() == [a & b for a, b in pairs]


def test_and_of_flags() -> None:
    parties = in_process()
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    z = and_bits(parties, split_bits(parties, a), split_bits(parties, b, 1), "test")
    assert (z[0] ^ z[1] ^ z[2]).item() & 15 == 0b1000


# Truncation ------------------------------------------------------------------------------------------------------


def by_rows(parties: Parties, values: Tensor, m: int, seed: int) -> Tensor:
    """Truncation right after a product: here the product with a shared one."""
    one = split(parties, torch.ones_like(values), seed + 1)
    return truncate_rows(parties, product(parties, torch.mul, split(parties, values, seed), one), m)


def by_payload(parties: Parties, values: Tensor, m: int, seed: int) -> Tensor:
    return truncate(parties, split(parties, values, seed), m)


def by_public_payload(parties: Parties, values: Tensor, m: int, seed: int) -> Tensor:
    return truncate(parties, sharing.public(parties, values), m)


Truncation = Callable[[Parties, Tensor, int, int], Tensor]
TRUNCATIONS = pytest.mark.parametrize("divide", [by_rows, by_payload, by_public_payload])
LEADS = pytest.mark.parametrize("lead", [0, 1, 2])


def led_by(lead: int, seed: int = 1) -> Parties:
    """Parties whose next asymmetric protocol is led by ``lead``."""
    parties = in_process(seed)
    while parties.next_lead() != (lead - 1) % 3:
        pass
    return parties


def assert_truncated(values: list[int], m: int, results: list[int]) -> None:
    for value, result in zip(values, results, strict=True):
        floor = value >> m
        allowed = {floor} if value % 2**m == 0 else {floor, floor + 1}
        assert result in allowed, (value, m, result)


@st.composite
def shift_and_values(draw: st.DrawFn) -> tuple[int, list[int]]:
    m = draw(st.integers(1, MAX_SHIFT))
    high = LIMIT - 2**m
    near = [-high, high, -high + 1, high - 1, 0, -1, 1, 2**m, -(2**m), 2**m - 1, 1 - 2**m]
    value = st.one_of(st.integers(-high, high), st.sampled_from(near), st.integers(-(2**m), 2**m))
    return m, draw(st.lists(value, max_size=40))


@TRUNCATIONS
@settings(deadline=None)
@given(case=shift_and_values(), seed=st.integers(0, 2**32), lead=st.integers(0, 2))
def test_truncation_is_the_floor_or_one_above(
    divide: Truncation, case: tuple[int, list[int]], seed: int, lead: int
) -> None:
    m, values = case
    results = divide(led_by(lead, seed), torch.tensor(values, dtype=torch.int64), m, seed)
    assert_truncated(values, m, opened(results).tolist())


@TRUNCATIONS
@LEADS
@pytest.mark.parametrize("m", [1, 2, 16, 17, 32, 33, MAX_SHIFT])
def test_truncation_never_errs_at_the_bounds(divide: Truncation, lead: int, m: int) -> None:
    """Many masks for each edge: a wrap-around handled wrongly would show once in a few of them."""
    high = LIMIT - 2**m
    edges = [high, -high, high - 1, 1 - high, 2**61, -(2**61), 0, -1, 1, -(2**m), 2**m, 2**m + 1]
    values = torch.tensor(edges, dtype=torch.int64).repeat(200)
    results = divide(led_by(lead), values, m, 7)
    assert_truncated(values.tolist(), m, opened(results).tolist())


@TRUNCATIONS
@pytest.mark.parametrize("m", [3, 16, 20])
def test_truncation_rounds_up_with_probability_of_the_fraction(divide: Truncation, m: int) -> None:
    """Exactly stochastic rounding: a Bernoulli(frac) each, independent of its neighbours. Seven sigma."""
    n = 40_000
    for numerator in [1, 2, 5, 7]:
        for whole in [3, -3]:
            value = (whole << m) + (numerator << (m - 3))
            results = opened(divide(in_process(numerator), torch.full((n,), value), m, 11))
            up = results == whole + 1
            assert bool((up | (results == whole)).all())
            p = numerator / 8
            assert abs(int(up.sum()) - n * p) < 7 * math.sqrt(n * p * (1 - p))


@TRUNCATIONS
def test_truncation_rounds_neighbours_and_repeats_independently(divide: Truncation) -> None:
    n = 40_000
    parties = in_process()
    half = torch.full((n,), 1 << 15)
    one, two = (opened(divide(parties, half, 16, 5)) for _ in range(2))
    assert abs(int((one != two).sum()) - n / 2) < 7 * math.sqrt(n) / 2
    assert abs(int((one[1:] != one[:-1]).sum()) - n / 2) < 7 * math.sqrt(n) / 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("divide", [by_rows, by_payload])
def test_truncation_keeps_shapes(divide: Truncation, shape: tuple[int, ...]) -> None:
    values = random_ring(shape, 3) >> 2
    payload = divide(in_process(), values, 10, 5)
    assert payload.shape == (3, *shape)
    assert_truncated(values.reshape(-1).tolist(), 10, opened(payload).reshape(-1).tolist())


@LEADS
def test_truncation_of_views(lead: int) -> None:
    values = random_ring((4, 6), 3) >> 2
    views: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.transpose(-1, -2),
        lambda t: t[..., ::2],
        lambda t: t[..., :1, :].expand(*t.shape[:-2], 5, 6),
    ]
    for view in views:
        parties = led_by(lead)
        payload = view(split(parties, values))
        rows = view(product(parties, torch.mul, split(parties, values), split(parties, torch.ones_like(values))))
        for result in [truncate(parties, payload, 8), truncate_rows(parties, rows, 8)]:
            assert result.shape[1:] == view(values).shape
            assert_truncated(view(values).reshape(-1).tolist(), 8, opened(result).reshape(-1).tolist())


@pytest.mark.parametrize("m", [-1, 0, MAX_SHIFT + 1, 64])
def test_other_shifts_are_refused(m: int) -> None:
    parties = in_process()
    with pytest.raises(ValueError, match=f"1 to {MAX_SHIFT}"):
        truncate(parties, split(parties, ring([1])), m)


def test_leads_take_turns() -> None:
    parties = in_process()
    assert Counter(parties.next_lead() for _ in range(9)) == {0: 3, 1: 3, 2: 3}
