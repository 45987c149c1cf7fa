"""Products that any device works out, against the compiled loops: the same 64 bits, whatever the shapes and numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encml.ring import kernels
from encml.ring.kernels import anywhere

LEAST, MOST = -(2**63), 2**63 - 1


def large(shape: Sequence[int], seed: int) -> Tensor:
    """Any 64 bits, so that products and sums wrap around."""
    halves = torch.randint(0, 2**32, (2, *shape), generator=torch.Generator().manual_seed(seed))
    return (halves[0] << 32) | halves[1]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ((), (3,)), ((4,), (4,)), ((4,), (4, 3)), ((2, 4), (4,)), ((2, 4), (4, 3)), ((1, 1), (1, 1)),
        ((5, 2, 4), (4, 3)), ((2, 4), (5, 4, 3)), ((3, 1, 2, 4), (5, 4, 3)), ((5, 2, 4), (5, 4, 1)),
        ((0, 4), (4, 3)), ((2, 0), (0, 3)), ((2, 4), (4, 0)), ((0, 2, 4), (4, 3)), ((0,), (0,)),
        ((2, 4), (3, 4)), ((2, 4, 3), (3, 3, 2)),
    ],
)  # fmt: skip
def test_matrices_multiply_or_are_refused_as_in_the_loops(one: Sequence[int], two: Sequence[int]) -> None:
    x, y = large(one, 1), large(two, 2)
    try:
        expected = kernels.matmul(x, y)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            anywhere.matmul(x, y)
        return
    result = anywhere.matmul(x, y)
    assert (result.shape, result.dtype) == (expected.shape, torch.int64)
    assert torch.equal(result, expected)


numbers = st.integers(LEAST, MOST) | st.sampled_from([LEAST, MOST, -1, 0, 1, 2**16 - 1, 2**16, 2**48, -(2**32)])


@given(st.data(), st.integers(1, 5), st.integers(1, 20), st.integers(1, 5), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_integers_however_they_lie_in_memory(
    data: st.DataObject, m: int, k: int, n: int, turn_x: bool, turn_y: bool
) -> None:
    def matrix(rows: int, columns: int, turned: bool) -> Tensor:
        drawn = data.draw(st.lists(numbers, min_size=rows * columns, max_size=rows * columns))
        flat = torch.tensor(drawn, dtype=torch.int64)
        return flat.view(columns, rows).t() if turned else flat.view(rows, columns)

    x, y = matrix(m, k, turn_x), matrix(k, n, turn_y)
    assert torch.equal(anywhere.matmul(x, y), kernels.matmul(x, y))


def test_the_largest_limbs_are_summed_exactly() -> None:
    """-1 is four limbs of 2^16 - 1: sums over a whole chunk, and over more than one, come closest to 2^53."""
    k = 2 * anywhere.DEPTH + 3
    ones = torch.full((1, 1), -1).expand(1, k)
    assert 4 * anywhere.DEPTH * (2**16 - 1) ** 2 < 2**53 < 16 * anywhere.DEPTH * (2**16 - 1) ** 2
    assert int(anywhere.matmul(ones, ones.t())) == k
    mixed = large((1, k), 3)
    assert torch.equal(anywhere.matmul(ones, mixed.t()), -mixed.sum(1, keepdim=True))
    assert torch.equal(anywhere.matmul(mixed, mixed.t()), (mixed * mixed).sum(1, keepdim=True))


CONVOLUTIONS = [
    # (N, C, O, groups), size, kernel, stride, padding, dilation
    ((2, 3, 4, 1), (6, 7), (3, 2), (1, 1), (1, 1), (1, 1)),
    ((1, 2, 3, 1), (7, 8), (3, 3), (2, 3), (1, 0), (1, 1)),
    ((2, 4, 6, 2), (6, 6), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((2, 4, 4, 4), (5, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((2, 3, 6, 3), (5, 9), (3, 2), (2, 1), (2, 0), (1, 2)),
    ((2, 4, 2, 2), (8, 7), (2, 3), (3, 2), (0, 2), (2, 1)),
    ((3, 4, 6, 2), (4, 5), (1, 1), (1, 1), (0, 0), (1, 1)),
    ((3, 2, 2, 1), (8, 8), (3, 3), (5, 5), (0, 0), (1, 1)),
    ((0, 2, 2, 1), (4, 4), (3, 3), (1, 1), (0, 0), (1, 1)),
    ((2, 4, 8, 4), (11,), (2,), (1,), (3,), (4,)),
    ((2, 2, 3, 1), (4, 5, 6), (3, 2, 1), (1, 2, 2), (1, 0, 1), (1, 2, 1)),
]
Case = tuple[tuple[int, int, int, int], Sequence[int], Sequence[int], Sequence[int], Sequence[int], Sequence[int]]


@pytest.mark.parametrize("few", [False, True], ids=["at once", "image by image"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions_and_their_adjoints(case: Case, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (n, c, o, groups), size, kernel, *steps = case
    if few:
        monkeypatch.setattr(anywhere, "_PATCHES", 1)
    x, weight = large((n, c, *size), 4), large((o, c // groups, *kernel), 5)
    expected = kernels.convolution(x, weight, *steps, groups)
    output = expected.shape[2:]
    assert torch.equal(anywhere.convolution(x, weight, output, *steps, groups), expected)
    gradient = large(expected.shape, 6)
    made = anywhere.input_gradient(gradient, weight, size, *steps, groups)
    assert torch.equal(made, kernels.input_gradient(gradient, weight, size, *steps, groups))
    made = anywhere.weight_gradient(x, gradient, kernel, *steps, groups)
    assert torch.equal(made, kernels.weight_gradient(x, gradient, kernel, *steps, groups))


def test_only_tensors_in_other_memory_are_elsewhere() -> None:
    here, there = torch.zeros(2), torch.zeros(2, device="meta")
    assert not anywhere.elsewhere(here, here)
    assert anywhere.elsewhere(here, there)
    assert anywhere.elsewhere(there)
