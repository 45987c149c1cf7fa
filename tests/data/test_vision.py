"""torchvision imports, whichever build pip paired with torch."""

from __future__ import annotations

import subprocess
import sys

import torch

from encml.data.vision import _declare_missing_operators

PROGRAM = """
import gc, torch
from encml.data import vision
gc.collect()
import torchvision
from torchvision.datasets import MNIST
assert vision.TorchvisionMNIST is MNIST
from torchvision.extension import _has_ops
assert (vision._declarations is None) == _has_ops(), "declare exactly where the library is missing"
assert hasattr(torch.ops.torchvision, "nms") and hasattr(torch.ops.torchvision, "qnms")
boxes = torch.tensor([[0., 0., 1., 1.], [0., 0., 1., 1.]])
try:
    kept = torch.ops.torchvision.nms(boxes, torch.tensor([1., 0.5]), 0.5)
except NotImplementedError:
    assert not _has_ops()
else:
    assert _has_ops() and kept.tolist() == [0]
"""


def test_torchvision_imports_in_a_fresh_interpreter() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr


def test_declaring_twice_does_nothing() -> None:
    assert hasattr(torch.ops.torchvision, "nms")
    assert _declare_missing_operators() is None
