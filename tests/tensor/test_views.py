"""Views and indexing: values, gradients, strides, and that a view is a view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import grid, matches, near
from torch import Tensor

import encml
from encml import Session, SharedTensor
from encml.tensor.shared import secret

View = Callable[[Tensor], Any]

VIEWS: list[View] = [
    lambda x: x.view(6, 4),
    lambda x: x.view(-1),
    lambda x: x.view(2, -1, 2),
    lambda x: x.reshape(4, 6),
    lambda x: x.flatten(1),
    lambda x: x.transpose(0, 2),
    lambda x: x.transpose(-1, -3),
    lambda x: x.swapaxes(1, -1),
    lambda x: x.permute(2, 0, 1),
    lambda x: x.permute(-1, -3, 1),
    lambda x: x.movedim(0, -1),
    lambda x: x[0].t(),
    lambda x: x[0].T,
    lambda x: x.mT,
    lambda x: x[1, 2],
    lambda x: x[1, 2, 3],
    lambda x: x[-1],
    lambda x: x[..., -1],
    lambda x: x[:, 1:3],
    lambda x: x[:, -2:],
    lambda x: x[:, ::2, 1::2],
    lambda x: x[:, 2:1],
    lambda x: x[:, 5:],
    lambda x: x[None, :, None],
    lambda x: x[..., None],
    lambda x: x[0, ..., 1:],
    lambda x: x.select(-2, 1),
    lambda x: x.narrow(1, 1, 2),
    lambda x: x.unsqueeze(0),
    lambda x: x.unsqueeze(-1),
    lambda x: x.unsqueeze(-4),
    lambda x: x.unsqueeze(2),
    lambda x: x[:1, :, :1].squeeze(),
    lambda x: x[:1, :, :1].squeeze(0),
    lambda x: x[:1, :, :1].squeeze(-1),
    lambda x: x[:1, :, :1].squeeze((0, -1)),
    lambda x: x.squeeze(1),
    lambda x: x[:, :1].expand(2, 5, 4),
    lambda x: x.expand(3, 2, 3, 4),
    lambda x: x[:, :1].expand(-1, 5, -1),
    lambda x: x[0, 0, 0].expand(2, 2),
    lambda x: x[:, :1].expand_as(torch.zeros(2, 7, 4)),
    lambda x: x.broadcast_to(2, 2, 3, 4),
    lambda x: x.split(2, 1),
    lambda x: x.split([1, 2], -2),
    lambda x: x.chunk(3, -1),
    lambda x: x.tensor_split(2, 2),
    lambda x: x.unbind(1),
    lambda x: x.unbind(-1),
    lambda x: x.diagonal(),
    lambda x: x.diagonal(1, -2, -1),
    lambda x: x.unfold(-1, 2, 1),
    lambda x: x.unfold(0, 2, 2),
    lambda x: list(x),
    lambda x: x.view_as(torch.zeros(4, 6)),
    lambda x: x.transpose(0, 1).contiguous().view(-1),
    lambda x: x.transpose(0, 1).flatten(),
    lambda x: x.unflatten(2, (2, 2)),
    lambda x: x.detach().requires_grad_(x.requires_grad),
]


@pytest.mark.parametrize("view", VIEWS)
def test_views_move_nothing_but_where(view: View) -> None:
    matches(view, grid(2, 3, 4), ulps=0, grad_ulps=0)


COPIES: list[View] = [
    lambda x: x.clone(),
    lambda x: x.transpose(0, 2).clone(),
    lambda x: x.contiguous(),
    lambda x: x.transpose(0, 2).contiguous(),
    lambda x: x.flip(0),
    lambda x: x.flip(-1, 1),
    lambda x: x.roll(2),
    lambda x: x.roll((1, -1), (0, 2)),
    lambda x: x.fliplr(),
    lambda x: x.repeat(2, 1, 3),
    lambda x: x.repeat(2, 1, 1, 1),
    lambda x: x.tile(2),
    lambda x: x.repeat_interleave(2, 1),
    lambda x: torch.cat([x, x * 2], 1),
    lambda x: torch.cat([x, x[:, :, :1]], -1),
    lambda x: torch.stack([x, -x]),
    lambda x: torch.stack([x, -x], -1),
    lambda x: torch.hstack([x, x]),
    lambda x: torch.vstack([x, x]),
    lambda x: torch.cat([x, torch.ones(1, 3, 4, dtype=torch.float64)]),
    lambda x: torch.stack([torch.ones(2, 3, 4, dtype=torch.float64), x]),
    lambda x: x.tril(),
    lambda x: x.triu(1),
    lambda x: x.cumsum(0),
    lambda x: x.cumsum(-1),
    lambda x: torch.nn.functional.pad(x, (1, 2)),
    lambda x: torch.nn.functional.pad(x, (0, 0, -1, 1)),
    lambda x: x[torch.tensor([1, 0, 1])],
    lambda x: x[:, torch.tensor([2, 0])],
    lambda x: x[torch.tensor([1, 0]), :, torch.tensor([3, -1])],
    lambda x: x[torch.tensor([[0, 1], [1, 1]]), torch.tensor([2])],
    lambda x: x[:, [0, 2]],
    lambda x: x[torch.tensor([True, False])],
    lambda x: x[:, torch.tensor([True, False, True])],
    lambda x: x[torch.arange(24).view(2, 3, 4) % 5 == 0],
    lambda x: x[torch.zeros(2, 3, dtype=torch.bool)],
    lambda x: x[None, torch.tensor([1]), ..., 1:3],
    lambda x: x.index_select(1, torch.tensor([2, 2, 0])),
    lambda x: x.gather(1, torch.tensor([[[0, 1, 2, 0]], [[2, 2, 1, 0]]])),
    lambda x: torch.take_along_dim(x, torch.tensor([[[0, 1, 2, 0]], [[2, 2, 1, 0]]]), 1),
    lambda x: x.index_add(0, torch.tensor([1, 0]), x * 2),
    lambda x: x.index_add(0, torch.tensor([1, 0]), x, alpha=3),
    lambda x: x.scatter_add(1, torch.zeros(2, 3, 4, dtype=torch.int64), x),
    lambda x: x.index_put((torch.tensor([0, 1]), torch.tensor([2, 2])), x[:, 0]),
    lambda x: x.index_put((torch.tensor([0, 0]),), x[:2], accumulate=True),
    lambda x: x.double(),
    lambda x: x.to(torch.float64, copy=True),
]


@pytest.mark.parametrize("copy", COPIES)
def test_copies_move_nothing_but_where(copy: View) -> None:
    matches(copy, grid(2, 3, 4), ulps=0, grad_ulps=0)


@pytest.mark.parametrize("copy", [*VIEWS, *COPIES])
def test_pending_products_move_as_well(copy: View) -> None:
    """Of a product that is not truncated yet. Up to four are added up (index_add with alpha=3); gradients are 2 x g."""
    matches(lambda x: copy(x * x), grid(2, 3, 4), ulps=4, grad_ulps=8)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_slices(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    key: list[Any] = []
    for size in shape:
        bound = st.none() | st.integers(-size - 1, size + 1)
        slices = st.builds(slice, bound, bound, st.none() | st.integers(1, 3))
        whole = st.integers(-size, size - 1) if size else st.nothing()
        key.append(data.draw(slices | whole | st.just(None).map(lambda _: slice(None))))
    if data.draw(st.booleans()):
        key.insert(data.draw(st.integers(0, len(key))), None)
    if data.draw(st.booleans()):
        key[data.draw(st.integers(0, len(key) - 1)) :] = [Ellipsis]
    with Session(seed=2):
        matches(lambda x: x[tuple(key)], grid(*shape), ulps=0, grad_ulps=0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.transpose(0, 3),
        lambda x: x.transpose(-4, 0),
        lambda x: x.sum(5),
        lambda x: x.sum(-4),
        lambda x: x.unsqueeze(4),
        lambda x: x.unsqueeze(-5),
        lambda x: x.squeeze(3),
        lambda x: x.select(3, 0),
        lambda x: x.permute(0, 1, 3),
        lambda x: x.unbind(3),
        lambda x: x.split(1, 3),
        lambda x: x.diagonal(0, 0, 3),
        lambda x: x.unfold(3, 1, 1),
        lambda x: x.narrow(3, 0, 1),
        lambda x: x.mean(3),
        lambda x: x.flip(3),
        lambda x: x.cumsum(3),
        lambda x: torch.cat([x, x], 3),
        lambda x: torch.stack([x, x], 4),
        lambda x: x[2],
        lambda x: x[:, :, 4],
        lambda x: x[0, 0, 0, 0],
        lambda x: x.select(0, -3),
    ],
)
def test_dimensions_out_of_range_are_refused(wrong: View) -> None:
    """They must not wrap round to another dimension, least of all to that of the shares."""
    with pytest.raises(IndexError):
        wrong(grid(2, 3, 4))
    with pytest.raises(IndexError):
        wrong(encml.share(grid(2, 3, 4)))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 0, 3)])
def test_views_of_scalars_and_of_nothing(shape: tuple[int, ...]) -> None:
    x = grid(*shape)
    for f in (
        lambda a: a.view(-1) if a.numel() else a.view(a.shape),
        lambda a: a.reshape(1, *a.shape),
        lambda a: a[None],
        lambda a: a[...],
        lambda a: a.squeeze(),
        lambda a: a.unsqueeze(-1),
        lambda a: a.flatten(),
        lambda a: a.transpose(-1, 0) if a.ndim else a.transpose(-1, -1),
        lambda a: a.permute(tuple(range(a.ndim))),
        lambda a: a.expand(2, *a.shape),
        lambda a: a.clone(),
        lambda a: torch.stack([a, a]),
        lambda a: a.split(1) if a.ndim else a,
        lambda a: a.t() if a.ndim < 3 else a,
    ):
        matches(f, x, ulps=0, grad_ulps=0)


def test_a_view_shares_memory_with_its_base() -> None:
    base = encml.share(grid(2, 3, 4))
    for view in (
        lambda x: x.view(6, 4),
        lambda x: x.transpose(0, 2),
        lambda x: x[:, ::2, 1],
        lambda x: x.permute(2, 0, 1)[..., None],
        lambda x: x.expand(2, 2, 3, 4),
        lambda x: x.unfold(1, 2, 1),
        lambda x: x.diagonal(0, 1, 2),
        lambda x: x.split(1)[1],
        lambda x: x.detach().unbind(-1)[2],
    ):
        there = secret(view(base)).payload
        assert there.untyped_storage().data_ptr() == secret(base).payload.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "index",
    [
        lambda x, i: x[i],
        lambda x, i: x.gather(0, i),
        lambda x, i: x.index_select(0, i),
        lambda x, i: x.scatter_add(0, i, x),
        lambda x, i: x.index_put((i,), x),
    ],
)
def test_a_secret_mask_is_refused_as_an_index(index: Callable[[Tensor, Tensor], Tensor]) -> None:
    i = encml.share(torch.ones(3)) > 0
    for x in (encml.share(grid(3)), grid(3)):
        with pytest.raises(NotImplementedError, match="secret mask"):
            index(x, i)


def test_iteration_and_length() -> None:
    x = grid(3, 2)
    shared = encml.share(x)
    assert len(shared) == 3
    rows = list(shared)
    assert all(isinstance(row, SharedTensor) for row in rows)
    for row, expected in zip(rows, x, strict=True):
        near(row.reveal(), expected, 0)
    first, *_ = shared
    near(first.reveal(), x[0], 0)


def test_shape_queries_are_public() -> None:
    x = encml.share(grid(2, 3))
    assert (x.shape, x.size(1), x.dim(), x.numel(), x.stride()) == ((2, 3), 3, 2, 6, (3, 1))
    assert x.is_contiguous()
    assert not x.t().is_contiguous()
    assert x.device == torch.device("cpu")
    assert x.is_floating_point()
    assert x.element_size() == 8
