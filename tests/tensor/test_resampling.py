"""Upsampling, padding by what is there and windows as columns: values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from reference import grid, matches

import encml
from encml import Session
from encml.tensor.shared import secret

SHAPES = {1: (2, 3, 9), 2: (2, 3, 7, 8), 3: (2, 2, 5, 4, 6)}

RESAMPLINGS: list[tuple[int, dict[str, Any]]] = [
    (1, {"scale_factor": 2}),
    (1, {"size": 4}),
    (1, {"size": 13, "mode": "linear"}),
    (1, {"scale_factor": 1.5, "mode": "linear", "align_corners": True}),
    (2, {"scale_factor": 2}),
    (2, {"size": (5, 11)}),
    (2, {"scale_factor": (1.7, 0.6)}),
    (2, {"scale_factor": 2, "mode": "nearest-exact"}),
    (2, {"scale_factor": 2, "mode": "bilinear"}),
    (2, {"size": (5, 11), "mode": "bilinear", "align_corners": True}),
    (2, {"scale_factor": 0.6, "mode": "bilinear", "recompute_scale_factor": True}),
    (2, {"size": (4, 3), "mode": "bilinear", "antialias": True}),
    (2, {"scale_factor": 2, "mode": "bicubic"}),
    (2, {"size": (5, 3), "mode": "bicubic", "antialias": True}),
    (3, {"scale_factor": 2}),
    (3, {"size": (3, 5, 8), "mode": "trilinear"}),
]


@pytest.mark.parametrize(("dims", "settings"), RESAMPLINGS, ids=str)
def test_resampling(dims: int, settings: dict[str, Any]) -> None:
    """Repetition is exact. Else one rounding of the result, and of up to 16 weights of values below 2, by half a unit.

    A place gets the gradients of up to 4 windows in each dimension.
    """
    exact = "nearest" in settings.get("mode", "nearest")
    ulps, grad_ulps = (0, 0) if exact else (1 + 16, 1 + 16 * 4**dims)
    matches(lambda a: F.interpolate(a, **settings), grid(*SHAPES[dims]), ulps=ulps, grad_ulps=grad_ulps)


def test_resampling_is_local(session: Session) -> None:
    x, weight = encml.share(grid(1, 2, 4, 4)), encml.share(grid(2, 2, 1, 1))
    rounds = session.ledger.total.rounds
    F.interpolate(F.conv2d(x, weight), scale_factor=2)
    F.interpolate(x, scale_factor=2, mode="bilinear")
    F.pad(F.conv2d(x, weight), (1, 1, 0, 1), mode="reflect")
    F.unfold(F.conv2d(x, weight), 2)
    assert session.ledger.total.rounds == rounds
    y = F.interpolate(x, scale_factor=2, mode="bilinear")
    secret(y).settle()
    assert session.ledger.total.rounds == rounds + 2


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "constant"])
@pytest.mark.parametrize(
    ("dims", "sides"),
    [(1, (2, 1)), (1, (0, 3)), (2, (1, 2, 0, 1)), (2, (3, 0, -1, 2)), (3, (1, 1, 2, 0, 0, 1))],
)
def test_padding(mode: str, dims: int, sides: tuple[int, ...]) -> None:
    matches(lambda a: F.pad(a, sides, mode=mode), grid(*SHAPES[dims]), ulps=0, grad_ulps=0)
    if mode != "circular":
        matches(lambda a: F.pad(a[0], sides, mode=mode), grid(*SHAPES[dims]), ulps=0, grad_ulps=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 2},
        {"kernel_size": (3, 2), "stride": 2},
        {"kernel_size": 3, "padding": 1, "stride": (2, 1)},
        {"kernel_size": (2, 3), "dilation": (2, 1), "padding": (0, 2)},
    ],
    ids=str,
)
def test_unfold_and_fold(settings: dict[str, Any]) -> None:
    x = grid(2, 3, 7, 8)
    matches(lambda a: F.unfold(a, **settings), x, ulps=0, grad_ulps=0)
    matches(lambda a: F.unfold(a[0], **settings), x, ulps=0, grad_ulps=0)
    columns = grid(*F.unfold(x, **settings).shape, seed=3)
    matches(lambda a: F.fold(a, (7, 8), **settings), columns, ulps=0, grad_ulps=0)
    matches(lambda a: F.fold(a[0], (7, 8), **settings), columns, ulps=0, grad_ulps=0)


def test_a_convolution_by_unfold() -> None:
    x, weight = grid(2, 3, 6, 5, seed=1), grid(4, 27, seed=2)
    matches(lambda a, w: w @ F.unfold(a, 3, padding=1), x, weight)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: F.pad(x, (9, 9), mode="reflect"),
        lambda x: F.pad(x, (9, 9), mode="circular"),
        lambda x: F.pad(x, (9, 9, 9, 9), mode="reflect"),
        lambda x: F.unfold(x, 9),
        lambda x: F.fold(x[0], (5, 5), 2),
        lambda x: F.interpolate(x, size=(0, 3)),
    ],
)
def test_errors_are_those_of_pytorch(f: Any) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)) as plain:
        f(grid(2, 3, 6, 6))
    with pytest.raises(type(plain.value)):
        f(encml.share(grid(2, 3, 6, 6)))
