"""SharedTensor: PyTorch's operators on secrets."""

from encml.tensor.api import reveal, share
from encml.tensor.joining import join_columns, join_rows
from encml.tensor.shared import SharedTensor
from encml.tensor.standardizing import reveal_statistics, standardize

__all__ = ["SharedTensor", "join_columns", "join_rows", "reveal", "reveal_statistics", "share", "standardize"]
