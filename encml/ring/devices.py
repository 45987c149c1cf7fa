"""Between the processor's own memory and the device that payloads lie on.

Masks are made and messages leave on the processor, and what a step of an element-wise protocol reads and writes is no
more than the masks and messages that go with it. So these steps are worked out there, whatever device payloads lie on,
and so are bits; products, sums and everything else that is linear are worked out where the payloads are.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor

T = TypeVar("T")
CPU = torch.device("cpu")


def host(x: Tensor) -> npt.NDArray[Any]:
    """The elements of a tensor as an array: a view of its memory if that is the processor's, else a copy."""
    array: npt.NDArray[Any] = x.cpu().numpy()
    return array


def beside(x: Tensor, arguments: T) -> T:
    """Arguments of an operation on x, such as indices, with the tensors among them moved to where x lies."""
    if x.device == CPU:
        return arguments
    moved: Any = arguments
    if isinstance(arguments, Tensor):
        moved = arguments.to(x.device)
    elif isinstance(arguments, list | tuple):
        moved = type(arguments)(beside(x, argument) for argument in arguments)
    elif isinstance(arguments, dict):
        moved = {name: beside(x, argument) for name, argument in arguments.items()}
    result: T = moved
    return result
