"""What the functions above autograd share."""

from __future__ import annotations

from torch import Tensor

from encml.tensor.secret import settle_all
from encml.tensor.shared import SharedTensor


def settle_together(*tensors: Tensor) -> None:
    """Settle the pending products among the tensors in the same rounds; plain tensors are passed over.

    3 rounds and 8.75 B a party and element of what is pending (see ``Secret.settle``), once, where settling one after
    the other would take 3 rounds each.
    """
    held = [x for x in tensors if isinstance(x, SharedTensor)]
    if held:
        session = held[0].session
        with session.whole(), session.ledger.operation("settle"):
            settle_all(*(x._secret for x in held))
