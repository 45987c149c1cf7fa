"""The table of contents: every aten operator that works on a SharedTensor, and where.

What is not here raises UnsupportedOperation. Nothing falls back to plaintext.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.tensor.handlers import arithmetic, compare, copies, creation, linear, losses, views
from encml.tensor.handlers.common import in_place
from encml.tensor.refusals import refuse_values

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
    aten.squeeze_.default: views.in_place(views.squeeze, aten.squeeze_.default),
    aten.squeeze_.dim: views.in_place(views.squeeze, aten.squeeze_.dim),
    aten.squeeze_.dims: views.in_place(views.squeeze, aten.squeeze_.dims),
    aten.unsqueeze_.default: views.in_place(views.unsqueeze, aten.unsqueeze_.default),
    aten.t_.default: views.in_place(views.t, aten.t_.default),
    aten.transpose_.default: views.in_place(views.transpose, aten.transpose_.default),
    # Copies and linear rearrangements
    aten.clone.default: copies.clone,
    aten._to_copy.default: copies.to_copy,
    aten.cat.default: copies.join(torch.cat),
    aten.stack.default: copies.join(torch.stack),
    aten.flip.default: copies.each_term(aten.flip.default),
    aten.roll.default: copies.each_term(aten.roll.default),
    aten.repeat.default: copies.each_term(aten.repeat.default),
    aten.cumsum.default: copies.cumsum,
    aten.tril.default: copies.each_term(aten.tril.default),
    aten.triu.default: copies.each_term(aten.triu.default),
    aten.constant_pad_nd.default: copies.pad,
    aten.index.Tensor: copies.index,
    aten.index_select.default: copies.each_term(aten.index_select.default),
    aten.gather.default: copies.each_term(aten.gather.default),
    aten.index_add.default: copies.fused_add(aten.index_add.default),
    aten.scatter_add.default: copies.fused_add(aten.scatter_add.default),
    aten.index_put.default: copies.index_put,
    # Adjoints of views
    aten.select_backward.default: copies.each_term(aten.select_backward.default),
    aten.slice_backward.default: copies.each_term(aten.slice_backward.default),
    aten.diagonal_backward.default: copies.each_term(aten.diagonal_backward.default),
    aten.unfold_backward.default: copies.each_term(aten.unfold_backward.default),
    # Public values as secrets
    aten.zeros_like.default: creation.like(0),
    aten.ones_like.default: creation.like(1),
    aten.full_like.default: creation.full_like,
    aten.new_zeros.default: creation.new(0),
    aten.new_ones.default: creation.new(1),
    aten.new_full.default: creation.new_full,
    aten.new_empty_strided.default: creation.new_empty_strided,
    # Arithmetic
    aten.add.Tensor: arithmetic.add,
    aten.add.Scalar: arithmetic.add,
    aten.sub.Tensor: arithmetic.sub,
    aten.sub.Scalar: arithmetic.sub,
    aten.rsub.Tensor: arithmetic.rsub,
    aten.rsub.Scalar: arithmetic.rsub,
    aten.neg.default: arithmetic.neg,
    aten.mul.Tensor: arithmetic.mul,
    aten.mul.Scalar: arithmetic.mul,
    aten.div.Tensor: arithmetic.div,
    aten.div.Scalar: arithmetic.div,
    aten.div.Tensor_mode: arithmetic.div,
    aten.pow.Tensor_Scalar: arithmetic.power,
    # Reductions
    aten.sum.default: linear.sum_all,
    aten.sum.dim_IntList: linear.sum_dims,
    aten.mean.default: linear.mean_all,
    aten.mean.dim: linear.mean_dims,
    # Products
    aten.mm.default: linear.matmul,
    aten.bmm.default: linear.matmul,
    aten.mv.default: linear.matmul,
    aten.dot.default: linear.matmul,
    aten.addmm.default: linear.addmm,
    aten.addmv.default: linear.addmm,
    aten.baddbmm.default: linear.addmm,
    aten.convolution.default: linear.convolution,
    aten.convolution_backward.default: linear.convolution_backward,
    aten.avg_pool2d.default: linear.avg_pool2d,
    aten.avg_pool2d_backward.default: linear.avg_pool2d_backward,
    # Comparisons
    aten.lt.Tensor: compare.lt,
    aten.lt.Scalar: compare.lt,
    aten.gt.Tensor: compare.gt,
    aten.gt.Scalar: compare.gt,
    aten.le.Tensor: compare.le,
    aten.le.Scalar: compare.le,
    aten.ge.Tensor: compare.ge,
    aten.ge.Scalar: compare.ge,
    aten.eq.Tensor: compare.eq,
    aten.eq.Scalar: compare.eq,
    aten.ne.Tensor: compare.ne,
    aten.ne.Scalar: compare.ne,
    # Bools
    aten.logical_not.default: compare.logical_not,
    aten.bitwise_not.default: compare.bitwise_not,
    aten.logical_and.default: arithmetic.logical_and,
    aten.bitwise_and.Tensor: arithmetic.logical_and,
    aten.bitwise_and.Scalar: arithmetic.logical_and,
    aten.logical_or.default: arithmetic.logical_or,
    aten.bitwise_or.Tensor: arithmetic.logical_or,
    aten.bitwise_or.Scalar: arithmetic.logical_or,
    aten.logical_xor.default: arithmetic.logical_xor,
    aten.bitwise_xor.Tensor: arithmetic.logical_xor,
    aten.bitwise_xor.Scalar: arithmetic.logical_xor,
    # ReLU and losses
    aten.relu.default: compare.relu,
    aten.threshold_backward.default: compare.threshold_backward,
    aten.mse_loss.default: losses.mse_loss,
    aten.mse_loss_backward.default: losses.mse_loss_backward,
    # In place
    aten.copy_.default: copies.copy_,
    aten.fill_.Scalar: copies.fill_,
    aten.fill_.Tensor: copies.fill_,
    aten.zero_.default: copies.zero_,
    aten.index_put_.default: copies.index_put_,
    aten._index_put_impl_.default: copies.index_put_,
    aten.index_add_.default: in_place(copies.fused_add(aten.index_add.default)),
    aten.scatter_add_.default: in_place(copies.fused_add(aten.scatter_add.default)),
    aten.add_.Tensor: in_place(arithmetic.add),
    aten.add_.Scalar: in_place(arithmetic.add),
    aten.sub_.Tensor: in_place(arithmetic.sub),
    aten.sub_.Scalar: in_place(arithmetic.sub),
    aten.neg_.default: in_place(arithmetic.neg),
    aten.mul_.Tensor: in_place(arithmetic.mul),
    aten.mul_.Scalar: in_place(arithmetic.mul),
    aten.div_.Tensor: in_place(arithmetic.div),
    aten.div_.Scalar: in_place(arithmetic.div),
    aten.pow_.Scalar: in_place(arithmetic.power),
    aten.relu_.default: in_place(compare.relu),
    # Values made plain
    aten._local_scalar_dense.default: refuse_values,
    aten.equal.default: refuse_values,
    aten.is_nonzero.default: refuse_values,
    aten.item.default: refuse_values,
}
