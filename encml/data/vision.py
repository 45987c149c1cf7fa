"""The one place through which encml imports torchvision.

Plain pip may pair a CPU-only torch with the CUDA build of torchvision (seen with torch 2.13.0 and torchvision
0.28.0). The compiled library of that build cannot be loaded, and then ``import torchvision`` itself fails with
"operator torchvision::nms does not exist", because it attaches shape functions to two operators that the library
would have defined. Declaring these two, without any implementation, lets the import pass. encml uses only
torchvision's data sets, which need no operator; whoever calls ``torchvision.ops.nms`` in such an installation still
gets an error, from PyTorch, for want of an implementation.

Where torchvision's own library loads, nothing is declared.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util

import torch

_DECLARED = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _library_loads() -> bool:
    """Whether torchvision's compiled operators are here, loading them (as its import would) if they can be."""
    package = importlib.util.find_spec("torchvision")
    if package is None or package.submodule_search_locations is None:
        return False
    library = importlib.machinery.PathFinder.find_spec("_C", list(package.submodule_search_locations))
    if library is None or library.origin is None:
        return False
    try:
        torch.ops.load_library(library.origin)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")


def _declare_missing_operators() -> torch.library.Library | None:
    """Declare what ``import torchvision`` asks for; None where nothing is missing.

    An operator disappears with the ``Library`` that declared it, so the caller keeps the result alive.
    """
    if hasattr(torch.ops.torchvision, "nms") or _library_loads():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in _DECLARED:
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
    return library


_declarations = _declare_missing_operators()

from torchvision.datasets import MNIST as TorchvisionMNIST  # noqa: E402  (only after the declaration above)

__all__ = ["TorchvisionMNIST"]
