"""Arithmetic, sums, products, comparisons, writes in place; and what would show a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from encml.ring import kernels
from encml.tensor.handlers import algebra, arithmetic, compare, copies, creation, linear, logic, lookup, losses, updates
from encml.tensor.handlers.common import in_place
from encml.tensor.refusals import refuse_values

aten = torch.ops.aten

HANDLERS: dict[Any, Callable[..., Any]] = {
    # Public values as secrets
    aten.zeros_like.default: creation.like(0),
    aten.empty_like.default: creation.like(0),
    aten.ones_like.default: creation.like(1),
    aten.full_like.default: creation.full_like,
    aten.new_zeros.default: creation.new(0),
    aten.new_empty.default: creation.new(0),
    aten.new_ones.default: creation.new(1),
    aten.fill.Scalar: creation.fill,
    aten.fill.Tensor: creation.fill,
    aten.new_full.default: creation.new_full,
    aten.new_empty_strided.default: creation.new_empty_strided,
    # Arithmetic
    aten.add.Tensor: updates.weighted_sum,
    aten.add.Scalar: arithmetic.add,
    aten.sub.Tensor: arithmetic.sub,
    aten.sub.Scalar: arithmetic.sub,
    aten.rsub.Tensor: arithmetic.rsub,
    aten.rsub.Scalar: arithmetic.rsub,
    aten.neg.default: arithmetic.neg,
    aten.mul.Tensor: arithmetic.mul,
    aten.mul.Scalar: arithmetic.mul,
    aten.deg2rad.default: logic.times(torch.pi / 180),
    aten.rad2deg.default: logic.times(180 / torch.pi),
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
    aten.vdot.default: linear.matmul,
    aten.addmm.default: algebra.plus_product(kernels.matmul),
    aten.addmv.default: algebra.plus_product(kernels.matmul),
    aten.baddbmm.default: algebra.plus_product(kernels.matmul),
    aten.addr.default: algebra.plus_product(torch.outer),
    aten.addbmm.default: algebra.plus_product(algebra.batch_sum),
    aten.addcmul.default: algebra.addcmul,
    aten.lerp.Scalar: algebra.lerp,
    aten.lerp.Tensor: algebra.lerp,
    aten.prod.default: algebra.prod_all,
    aten.prod.dim_int: algebra.prod_dim,
    aten.cumprod.default: algebra.cumprod,
    aten._trilinear.default: algebra.trilinear,
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
    aten.logical_and.default: logic.of_truths(arithmetic.logical_and),
    aten.logical_or.default: logic.of_truths(arithmetic.logical_or),
    aten.logical_xor.default: logic.of_truths(arithmetic.logical_xor),
    aten.bitwise_and.Tensor: arithmetic.logical_and,
    aten.bitwise_and.Scalar: arithmetic.logical_and,
    aten.bitwise_or.Tensor: arithmetic.logical_or,
    aten.bitwise_or.Scalar: arithmetic.logical_or,
    aten.bitwise_xor.Tensor: arithmetic.logical_xor,
    aten.bitwise_xor.Scalar: arithmetic.logical_xor,
    aten.any.default: logic.any_,
    aten.any.dim: logic.any_,
    aten.any.dims: logic.any_,
    aten.all.default: logic.all_,
    aten.all.dim: logic.all_,
    aten.all.dims: logic.all_,
    aten.count_nonzero.default: logic.count_nonzero,
    aten.count_nonzero.dim_IntList: logic.count_nonzero,
    aten.isnan.default: logic.never,
    aten.isinf.default: logic.never,
    aten.isposinf.default: logic.never,
    aten.isneginf.default: logic.never,
    aten.angle.default: logic.angle,
    # ReLU and losses
    aten.relu.default: compare.relu,
    aten.threshold_backward.default: compare.threshold_backward,
    aten.mse_loss.default: losses.mse_loss,
    aten.mse_loss_backward.default: losses.mse_loss_backward,
    # In place, put off
    aten.add_.Tensor: updates.add_,
    aten.sub_.Tensor: updates.sub_,
    aten.mul_.Tensor: updates.mul_,
    # In place, where another operator's name or arguments keep table/contents.py from finding the form
    aten.copy_.default: copies.copy_,
    aten.fill_.Scalar: copies.fill_,
    aten.fill_.Tensor: copies.fill_,
    aten.zero_.default: copies.zero_,
    aten._index_put_impl_.default: in_place(lookup.by_index(copies.index_put, lookup.put_rows, 1)),
    # Values made plain
    aten._local_scalar_dense.default: refuse_values,
    aten.equal.default: refuse_values,
    aten.is_nonzero.default: refuse_values,
    aten.item.default: refuse_values,
}
