"""Sampling an image at the places of a public grid: a matrix that everybody knows, times the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from encml.errors import UnsupportedOperation
from encml.tensor.shared import SharedTensor


def grid_sampler(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The handler of grid_sampler_2d and grid_sampler_3d, every mode and padding. Local; rescaled later."""

    def handler(image: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
        weights = _weights(op, image, grid, mode, padding, align_corners)
        return torch.matmul(image.flatten(2), weights).reshape(*image.shape[:2], *grid.shape[1:-1])

    return handler


def grid_sampler_backward(op: Callable[..., Tensor]) -> Callable[..., tuple[Tensor | None, None]]:
    """The handler of their derivatives, towards the image."""

    def handler(
        gradient: Tensor,
        image: Tensor,
        grid: Tensor,
        mode: int,
        padding: int,
        align_corners: bool,
        output_mask: Sequence[bool],
    ) -> tuple[Tensor | None, None]:
        if output_mask[1]:
            raise UnsupportedOperation("grid_sample: the gradient of the grid is not there; keep the grid fixed")
        weights = _weights(op, image, grid, mode, padding, align_corners)
        return torch.matmul(gradient.flatten(2), weights.mT).reshape(image.shape), None

    return handler


def _weights(
    op: Callable[..., Tensor], image: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool
) -> Tensor:
    """(N, pixels, places): what the operator makes of images with one pixel of 1 each."""
    if isinstance(grid, SharedTensor):
        raise UnsupportedOperation("grid_sample: a secret grid cannot choose what is read; supported is a public one")
    sizes = image.shape[2:]
    unit = torch.eye(sizes.numel(), dtype=grid.dtype).reshape(1, -1, *sizes)
    return op(unit.expand(len(grid), -1, *sizes), grid, mode, padding, align_corners).flatten(2)
