"""encml: train one PyTorch model together, and use it, without showing each other the data."""

from encml.errors import UnsupportedOperation
from encml.mpc.session import Session
from encml.tensor import SharedTensor, reveal, share

__all__ = ["Session", "SharedTensor", "UnsupportedOperation", "reveal", "share"]
__version__ = "0.1.0"
