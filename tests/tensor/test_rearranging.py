"""Copies of views, moves by public indices, products along dimensions, truth values, groups, searches, distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import grid, matches
from torch import Tensor

import encml
from encml.errors import SecretError, UnsupportedOperation

aten = torch.ops.aten
INDEX = torch.tensor([2, 0, 2])
MASK = grid(4, 3, seed=5) > 0

EXACT: list[Callable[..., Any]] = [
    lambda x: torch.transpose_copy(x, 0, 1),
    lambda x: torch.split_with_sizes_copy(x, [1, 3]),
    lambda x: torch.narrow_copy(x, 0, -3, 2),
    lambda x: torch.unsafe_chunk(x, 2),
    lambda x: torch.diag_embed(x, 1),
    lambda x: torch.diagonal_scatter(x, x[0]),
    lambda x: torch.select_scatter(x, x[:, 1], 1, 0),
    lambda x: torch.slice_scatter(x, x[:2], 0, 1, 3),
    lambda x: torch.block_diag(x, x[:2]),
    lambda x: torch.trace(x[:3]),
    lambda x: torch.take(x, INDEX),
    lambda x: torch.index_copy(x, 0, torch.tensor([3, 1]), 2 * x[:2]),
    lambda x: torch.index_fill(x, 1, INDEX, -1.5),
    lambda x: torch.index_fill(x, 1, INDEX, x[0, 0]),
    lambda x: torch.scatter(x, 0, INDEX[None], 2 * x[:1]),
    lambda x: torch.scatter(x, 0, INDEX[None], 0.5),
    lambda x: torch.put(x, INDEX, x[0], accumulate=True),
    lambda x: torch.masked_scatter(x, MASK, 2 * x),
    lambda x: torch.rot90(x),
    lambda x: torch.nan_to_num(x),
    lambda x: torch.nansum(x, 1),
    lambda x: torch.nn.functional.pad(x, (1, -1, 0, 2), value=1.5),
    lambda x: torch.nn.functional.pixel_shuffle(x.reshape(1, 4, 3, 1), 2),
    lambda x: torch.as_strided(x, (3, 2), (1, 4), 1),
    lambda x: x[1:].as_strided((2, 2), (3, 1)),
    lambda x: torch.scatter_reduce(x, 0, INDEX[None], x[1:2], "sum", include_self=False),
]


@pytest.mark.parametrize("f", EXACT)
def test_moves(f: Callable[..., Any]) -> None:
    matches(f, grid(4, 3), ulps=0, grad_ulps=1, strides=False)


PRODUCTS: list[Callable[..., Any]] = [
    lambda x, y, z: torch.addcmul(x, y, z, value=0.5),
    lambda x, y, z: torch.lerp(x, y, z),
    lambda x, y, z: torch.lerp(x, y, 0.25),
    lambda x, y, z: torch.addr(x, y[:, 0], z[0], beta=0.5, alpha=2),
    lambda x, y, z: torch.addr(x, y[:, 0], z[0], beta=0),
    lambda x, y, z: torch.addbmm(x, y[None].expand(2, 4, 3), z[None, :3].expand(2, 3, 3)),
    lambda x, y, z: torch.nn.functional.bilinear(x, y, z[:2, :, None] * z[2:, None]),
    lambda x, y, z: torch.linalg.cross(x, y) + z,
]


@pytest.mark.parametrize("f", PRODUCTS)
@pytest.mark.parametrize("public", [[], [0], [1, 2], [2]])
def test_products(f: Callable[..., Any], public: list[int]) -> None:
    matches(f, *(grid(4, 3, seed=i) for i in range(3)), ulps=16, grad_ulps=16, public=public, strides=False)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_products_along_a_dimension(n: int) -> None:
    matches(lambda x: torch.prod(x, 1, keepdim=True), grid(3, n), ulps=64, grad_ulps=64)
    matches(torch.prod, grid(n, 2), ulps=64, grad_ulps=64)
    matches(lambda x: torch.cumprod(x, 0), grid(n, 2), ulps=64, grad_ulps=512)
    whole = torch.tensor([3, -2, 5])
    assert int(encml.share(whole).prod().reveal()) == -30


def test_rounds_grow_with_the_logarithm(session: encml.Session) -> None:
    x = encml.share(grid(64))
    for f in (torch.prod, lambda x: torch.cumprod(x, 0)):
        before = session.ledger.rounds
        f(x).reveal()
        assert session.ledger.rounds - before <= 6 * 3 + 1


def test_truth() -> None:
    x = torch.tensor([[0.0, 0, 0], [0, 2**-16, 0], [1, -1, 3]]).double()
    for f in (
        torch.any,
        torch.all,
        lambda x: torch.any(x, 1),
        lambda x: torch.all(x, (0, 1), keepdim=True),
        torch.count_nonzero,
        lambda x: torch.count_nonzero(x, 0),
        lambda x: torch.logical_and(x, x.t()),
        lambda x: torch.logical_or(x, x.t()),
        lambda x: torch.logical_xor(x, x.t() > 0),
    ):
        matches(f, x, ulps=0, backward=False, strides=False)
    secret = encml.share(x)
    assert bool(torch.isfinite(secret).all())
    assert not bool(torch.isnan(secret).any() or torch.isinf(secret).any() or torch.isposinf(secret).any())


@pytest.mark.parametrize("n", [2, 3, 4, 63, 64, 65])
def test_any_is_right_for_every_count(n: int) -> None:
    rows = torch.ones(n + 1, n).tril(-1) > 0
    shared = encml.share(rows)
    assert torch.equal(shared.any(1).reveal(), rows.any(1))
    assert torch.equal(shared.all(1).reveal(), rows.all(1))


@pytest.mark.parametrize("reduce", ["mean", "prod", "amax", "amin"])
@pytest.mark.parametrize("include_self", [True, False])
def test_groups(reduce: str, include_self: bool) -> None:
    index = torch.tensor([[0, 1, 1], [0, 3, 0]])

    def f(x: Tensor, y: Tensor) -> Tensor:
        return torch.scatter_reduce(x, 0, index, y, reduce, include_self=include_self)

    matches(f, grid(4, 3), grid(2, 3, seed=1), ulps=16, grad_ulps=64, strides=False)


def test_searches() -> None:
    edges, x = torch.tensor([-1.0, 0, 0, 1.5]).double(), torch.tensor([[-2.0, -1, 0], [0.5, 1.5, 9]]).double()
    for public in ([], [0], [1]):
        matches(torch.searchsorted, edges, x, ulps=0, backward=False, public=public)
        matches(lambda a, b: torch.bucketize(b, a, right=True), edges, x, ulps=0, backward=False, public=public)
        matches(lambda a, b: torch.isin(b, a), edges, x, ulps=0, backward=False, public=public)


@pytest.mark.parametrize("order", [0.0, 1.0, 2.0, 3.0, float("inf")])
def test_distances(order: float) -> None:
    matches(lambda x, y: torch.cdist(x, y, order), grid(3, 4), grid(2, 4, seed=1), ulps=32, grad_ulps=64)
    matches(lambda x: torch.nn.functional.pdist(x, order), grid(3, 4), ulps=32, grad_ulps=64)


def test_in_place_forms_write_over_what_they_are_called_on() -> None:
    for name, arguments in {
        "addcmul_": (grid(3, seed=1), grid(3, seed=2)),
        "eq_": (0.5,),
        "index_fill_": (0, INDEX, 2.0),
        "masked_scatter_": (MASK[0], grid(3, seed=1)),
        "floor_divide_": (0.75,),
        "atan_": (),
        "cumsum_": (0,),
    }.items():
        plain = grid(2, 3)
        shared = encml.share(plain)
        getattr(plain[1], name)(*arguments)
        getattr(shared[1], name)(*arguments)
        assert float((shared.reveal() - plain).abs().max()) < 3 * 2**-16, name


def test_what_is_refused() -> None:
    x = encml.share(grid(4, 3))
    with pytest.raises(SecretError, match="plain tensor"):
        torch.zeros(4, 3).double().index_copy_(0, INDEX, x[:3])
    with pytest.raises(UnsupportedOperation, match="clone"):
        x[1:].as_strided((2, 2), (3, 1), 4)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 1}])
def test_bags_of_embeddings(mode: str, options: dict[str, Any]) -> None:
    indices, offsets = torch.tensor([1, 3, 3, 0, 1, 2]), torch.tensor([0, 2, 2, 5])

    def f(weight: Tensor) -> Tensor:
        return torch.nn.functional.embedding_bag(indices, weight, offsets, mode=mode, **options)

    matches(f, grid(4, 3), ulps=2, grad_ulps=4, strides=False)


def test_weighted_bags() -> None:
    indices = torch.tensor([[1, 3], [3, 0]])

    def f(weight: Tensor, shares: Tensor) -> Tensor:
        return torch.nn.functional.embedding_bag(indices, weight, mode="sum", per_sample_weights=shares)

    for public in ([], [0], [1]):
        matches(f, grid(4, 3), grid(2, 2, seed=1), ulps=2, grad_ulps=4, strides=False, public=public)
    with pytest.raises(UnsupportedOperation, match="max"):
        torch.nn.functional.embedding_bag(indices, encml.share(grid(4, 3)), mode="max")


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_sampling_at_public_places(mode: str) -> None:
    image, places = grid(2, 3, 4, 5), grid(2, 3, 3, 2, seed=1, low=-1.25, high=1.25)

    def f(image: Tensor, places: Tensor) -> Tensor:
        return torch.nn.functional.grid_sample(image, places.detach(), mode=mode, align_corners=False)

    matches(f, image, places, ulps=4, grad_ulps=4, public=[1], strides=False)
    with pytest.raises(UnsupportedOperation, match="secret grid"):
        f(encml.share(image), encml.share(places))


def test_histograms() -> None:
    x = torch.tensor([-3.0, -1, -0.5, 0, 0.25, 0.5, 1, 1, 5]).double()
    for arguments in ((4, -1, 1), (8, 0, 0), (1, -1, 1)):
        matches(lambda x, a=arguments: torch.histc(x, *a), x, ulps=0, backward=False)


@pytest.mark.parametrize("name", ["chebyshev_polynomial_u", "hermite_polynomial_he", "legendre_polynomial_p"])
def test_polynomials_of_a_public_degree(name: str) -> None:
    f, degrees = getattr(torch.special, name), torch.tensor([-1, 0, 1, 2, 3, 4])
    matches(lambda x, n: f(x, n), grid(6), degrees, ulps=64, backward=False, public=[1], strides=False)
    matches(lambda x: f(x, 3), grid(6), ulps=64, backward=False)
