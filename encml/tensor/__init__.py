"""SharedTensor: PyTorch's operators on secrets."""

from encml.tensor.api import reveal, share
from encml.tensor.shared import SharedTensor

__all__ = ["SharedTensor", "reveal", "share"]
