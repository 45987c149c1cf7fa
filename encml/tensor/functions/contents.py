"""What must be caught above autograd: Python-level functions -> their secret-shared versions.

aten operators are in encml.tensor.table.
"""

from __future__ import annotations

from encml.tensor.functions import (
    attention,
    certain,
    determinants,
    dropout,
    lookup,
    losses,
    norms,
    pooling,
    recurrent,
    sinc,
    traps,
)
from encml.tensor.table.contents import merged

FUNCTIONS = merged(
    traps.FUNCTIONS,
    dropout.FUNCTIONS,
    attention.FUNCTIONS,
    lookup.FUNCTIONS,
    recurrent.FUNCTIONS,
    certain.FUNCTIONS,
    determinants.FUNCTIONS,
    norms.FUNCTIONS,
    losses.FUNCTIONS,
    pooling.FUNCTIONS,
    sinc.FUNCTIONS,
)
