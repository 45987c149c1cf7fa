"""Which aten operators work on a SharedTensor; contents.py has them all, the other files one kind each."""

from encml.tensor.table.contents import HANDLERS

__all__ = ["HANDLERS"]
