"""Between the processor's own memory and the device that payloads lie on.

Masks are made and messages leave on the processor, and what a step of an element-wise protocol reads and writes is no
more than the masks and messages that go with it. So these steps are worked out there, whatever device payloads lie on,
and so are bits; products, sums and everything else that is linear are worked out where the payloads are.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

CPU = torch.device("cpu")


def host(x: Tensor) -> npt.NDArray[Any]:
    """The elements of a tensor as an array: a view of its memory if that is the processor's, else a copy."""
    array: npt.NDArray[Any] = x.cpu().numpy()
    return array
