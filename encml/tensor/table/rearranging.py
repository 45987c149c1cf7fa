"""Views, copies, and what moves elements by indices. Nothing here sends a message, but to settle or for secret ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import copies, lookup, rounding, updates, views
from encml.tensor.handlers.copies import each_term, join, moved
from encml.tensor.handlers.lookup import by_index
from encml.tensor.handlers.views import copied, written

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    # Views
    aten.detach.default: views.same,
    aten.alias.default: views.same,
    aten.view.default: views.view,
    aten._unsafe_view.default: views.view,
    aten.t.default: views.t,
    aten.transpose.int: views.transpose,
    aten.permute.default: views.permute,
    aten.expand.default: views.expand,
    aten.unsqueeze.default: views.unsqueeze,
    aten.squeeze.default: views.squeeze,
    aten.squeeze.dim: views.squeeze,
    aten.squeeze.dims: views.squeeze,
    aten.select.int: views.select,
    aten.slice.Tensor: views.slice_,
    aten.split.Tensor: views.split,
    aten.split_with_sizes.default: views.split,
    aten.unbind.int: views.unbind,
    aten.diagonal.default: views.diagonal,
    aten.unfold.default: views.unfold,
    aten.as_strided.default: views.as_strided,
    aten.squeeze_.default: views.in_place(views.squeeze, aten.squeeze_.default),
    aten.squeeze_.dim: views.in_place(views.squeeze, aten.squeeze_.dim),
    aten.squeeze_.dims: views.in_place(views.squeeze, aten.squeeze_.dims),
    aten.unsqueeze_.default: views.in_place(views.unsqueeze, aten.unsqueeze_.default),
    aten.t_.default: views.in_place(views.t, aten.t_.default),
    aten.transpose_.default: views.in_place(views.transpose, aten.transpose_.default),
    aten.as_strided_.default: views.in_place(views.as_strided, aten.as_strided_.default),
    # Views as copies
    aten.alias_copy.default: copied(views.same),
    aten.detach_copy.default: copied(views.same),
    aten.view_copy.default: copied(views.view),
    aten.t_copy.default: copied(views.t),
    aten.transpose_copy.int: copied(views.transpose),
    aten.permute_copy.default: copied(views.permute),
    aten.expand_copy.default: copied(views.expand),
    aten.unsqueeze_copy.default: copied(views.unsqueeze),
    aten.squeeze_copy.default: copied(views.squeeze),
    aten.squeeze_copy.dim: copied(views.squeeze),
    aten.squeeze_copy.dims: copied(views.squeeze),
    aten.select_copy.int: copied(views.select),
    aten.slice_copy.Tensor: copied(views.slice_),
    aten.narrow_copy.default: copied(views.narrow),
    aten.split_copy.Tensor: copied(views.split),
    aten.split_with_sizes_copy.default: copied(views.split),
    aten.unsafe_split.Tensor: copied(views.split),
    aten.unsafe_split_with_sizes.default: copied(views.split),
    aten.unbind_copy.int: copied(views.unbind),
    aten.diagonal_copy.default: copied(views.diagonal),
    aten.unfold_copy.default: copied(views.unfold),
    aten.as_strided_copy.default: copied(views.as_strided),
    # A copy of one tensor with another where a view of it is
    aten.select_scatter.default: written(views.select),
    aten.slice_scatter.default: written(views.slice_),
    aten.diagonal_scatter.default: written(views.diagonal),
    aten.as_strided_scatter.default: written(views.as_strided),
    # Adjoints of views
    aten.select_backward.default: each_term(aten.select_backward.default),
    aten.slice_backward.default: each_term(aten.slice_backward.default),
    aten.diagonal_backward.default: each_term(aten.diagonal_backward.default),
    aten.unfold_backward.default: each_term(aten.unfold_backward.default),
    # Copies and linear rearrangements
    aten.clone.default: updates.copied,
    aten.conj_physical.default: copies.clone,
    aten._to_copy.default: rounding.to_copy,
    aten.nan_to_num.default: copies.number,
    aten.cat.default: join(torch.cat),
    aten.stack.default: join(torch.stack),
    aten.block_diag.default: join(aten.block_diag.default),
    aten._chunk_cat.default: join(aten._chunk_cat.default),
    aten.flip.default: each_term(aten.flip.default),
    aten.roll.default: each_term(aten.roll.default),
    aten.rot90.default: each_term(aten.rot90.default),
    aten.repeat.default: each_term(aten.repeat.default),
    aten.tril.default: each_term(aten.tril.default),
    aten.triu.default: each_term(aten.triu.default),
    aten.trace.default: each_term(aten.trace.default),
    aten.diag_embed.default: each_term(aten.diag_embed.default),
    aten.pixel_shuffle.default: each_term(aten.pixel_shuffle.default),
    aten.pixel_unshuffle.default: each_term(aten.pixel_unshuffle.default),
    aten.channel_shuffle.default: each_term(aten.channel_shuffle.default),
    aten.cumsum.default: copies.cumsum,
    aten.nansum.default: copies.nansum,
    aten.constant_pad_nd.default: copies.pad,
    # By an index, public or, where by_index says so, secret
    aten.index.Tensor: by_index(copies.index, lookup.index_rows, 1),
    aten._unsafe_index.Tensor: by_index(copies.index, lookup.index_rows, 1),
    aten.index_select.default: by_index(each_term(aten.index_select.default), lookup.rows_of, 2),
    aten.gather.default: by_index(each_term(aten.gather.default), lookup.gather, 2),
    aten.masked_select.default: each_term(aten.masked_select.default),
    aten.take.default: by_index(each_term(aten.take.default), lookup.take, 1),
    aten.index_add.default: by_index(copies.index_add, lookup.add_rows, 2),
    aten.index_copy.default: moved(aten.index_copy.default, 0, 3),
    aten.index_fill.int_Scalar: moved(aten.index_fill.int_Scalar, 0, 3),
    aten.index_fill.int_Tensor: moved(aten.index_fill.int_Tensor, 0, 3),
    aten.index_put.default: by_index(copies.index_put, lookup.put_rows, 1),
    aten._unsafe_index_put.default: by_index(copies.index_put, lookup.put_rows, 1),
    aten.put.default: by_index(moved(aten.put.default, 0, 2), lookup.put, 1),
    aten.scatter.src: by_index(moved(aten.scatter.src, 0, 3), lookup.scatter, 2),
    aten.scatter.value: by_index(moved(aten.scatter.value, 0, 3), lookup.scatter, 2),
    aten.scatter_add.default: by_index(moved(aten.scatter_add.default, 0, 3), lookup.scatter_add, 2),
    aten.masked_scatter.default: moved(aten.masked_scatter.default, 0, 2),
    aten.masked_scatter_backward.default: each_term(aten.masked_scatter_backward.default),
    aten._unsafe_masked_index.default: moved(aten._unsafe_masked_index.default, 0, 3),
    aten._unsafe_masked_index_put_accumulate.default: moved(aten._unsafe_masked_index_put_accumulate.default, 0, 3),
}
