"""The table of operators: entries that no Python function reaches today, called as PyTorch's C++ might."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import grid, near
from torch import Tensor

import encml
from encml.errors import SecretError
from encml.tensor.table import HANDLERS

aten = torch.ops.aten

DIRECT: list[Callable[[Tensor], Any]] = [
    lambda x: aten.add.Scalar(x, 1.5, 2),
    lambda x: aten.sub.Scalar(x, 1.5, 2),
    lambda x: aten.rsub.Scalar(x, 1.5, 2),
    lambda x: aten.mul.Scalar(x, 3),
    lambda x: aten.div.Scalar(x, 4),
    lambda x: aten.add_.Scalar(x.clone(), 1.5),
    lambda x: aten.sub_.Scalar(x.clone(), 1.5),
    lambda x: aten.mul_.Scalar(x.clone(), 3),
    lambda x: aten.div_.Scalar(x.clone(), 4),
    lambda x: aten.squeeze_.dims(x.clone()[None], [0]),
    lambda x: aten.bitwise_and.Scalar(x > 0, True),
    lambda x: aten.bitwise_or.Scalar(x > 0, True),
    lambda x: aten.bitwise_xor.Scalar(x > 0, True),
    lambda x: aten.logical_and(x > 0, x > 1),
    lambda x: aten.logical_or(x > 0, x < -1),
    lambda x: aten._index_put_impl_(x.clone(), [torch.tensor([0, 0])], x[:2].clone(), True, False),
    lambda x: aten.detach(x),
    lambda x: aten.alias(x),
    lambda x: aten._unsafe_view(x, [2, 6]),
]


@pytest.mark.parametrize("call", DIRECT)
def test_direct_calls(call: Callable[[Tensor], Any]) -> None:
    near(call(encml.share(grid(4, 3))).reveal(), call(grid(4, 3)), 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: aten.item(x),
        lambda x: aten._local_scalar_dense(x),
        lambda x: aten.is_nonzero(x),
        lambda x: aten.equal(x, x),
        lambda x: aten.equal(torch.zeros(()), x),
    ],
)
def test_direct_calls_that_would_show_a_value(call: Callable[[Tensor], Any]) -> None:
    with pytest.raises(SecretError, match="not visible"):
        call(encml.share(grid()))
    with torch.inference_mode(), pytest.raises(SecretError, match="not visible"):
        call(encml.share(grid()))


def test_entries_are_operators_of_pytorch() -> None:
    for op, handler in HANDLERS.items():
        assert isinstance(op, torch._ops.OpOverload)
        assert callable(handler)
        into = op._schema.arguments[0].alias_info  # others may be written to as well: running statistics
        mutates = into is not None and into.is_write
        assert mutates == (str(op).split(".")[1].endswith("_")), f"{op}: in place by name and by schema"
