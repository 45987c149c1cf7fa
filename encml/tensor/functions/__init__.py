"""Which Python-level functions are caught above autograd; contents.py has them all, the other files one kind each."""

from encml.tensor.functions.contents import FUNCTIONS

__all__ = ["FUNCTIONS"]
