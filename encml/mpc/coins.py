"""Public randomness: random choices that everybody may know and that all parties make alike, such as dropout's.

The key is agreed on when it is first needed. No party can foresee it, and the choices protect nothing.
"""

from __future__ import annotations

import torch

from encml.errors import ProtocolError
from encml.mpc.parties import Parties, known
from encml.net.transport import PARTIES
from encml.ring.prg import KEY_BYTES, KeyStream

REMEMBERED = 1 << 18
"""How many tickets are kept; the oldest are forgotten first."""


class PublicCoins:
    """The public random choices of one session, in order.

    Each choice has a stream of its own, which whoever made it may read as far as he likes. A ``ticket`` names the state
    of the caller's own program: whoever shows a ticket again gets the same choice again, so that a computation which is
    repeated on purpose (a checkpoint's) meets the same randomness. Tickets may differ between parties; that all of them
    repeat, and the same choice, is checked.
    """

    def __init__(self, parties: Parties) -> None:
        self._parties = parties
        self._keys: KeyStream | None = None
        self._known: dict[int, bytes] = {}

    def forget(self) -> None:
        """Agree on a new key before the next choice: the masks that the last one came from have begun anew."""
        self._keys = None
        self._known.clear()

    @property
    def drawn(self) -> int:
        """How many choices have been made, in bytes of their keys."""
        return 0 if self._keys is None else self._keys.drawn

    def choice(self, ticket: int, operation: str) -> KeyStream:
        """The stream of the next choice, or of the one that ``ticket`` was first shown for.

        No communication, but for the first choice of a session (1 round, 32 bytes a party) and for a repeated one (1
        round, 8 bytes a party). Raises ProtocolError if parties repeat different choices.
        """
        key = self._known.get(ticket)
        if key is None:
            key = self._known[ticket] = self._next_key(operation)
            if len(self._known) > REMEMBERED:
                del self._known[next(iter(self._known))]
        else:
            self._check_repeated(key, operation)
        return KeyStream(key)

    def _next_key(self, operation: str) -> bytes:
        if self._keys is None:
            self._keys = KeyStream(_agree(self._parties, operation))
        return self._keys.words((KEY_BYTES,), torch.uint8).numpy().tobytes()

    def _check_repeated(self, key: bytes, operation: str) -> None:
        word = KeyStream(key).words((1,))
        own = word.repeat(self._parties.here, 1)
        if not torch.equal(self._parties.net.rotate(own, +1, f"{operation}, repeated"), own):
            raise ProtocolError(
                f"{operation}: the parties repeat different random choices; seed PyTorch's generator alike at all "
                "parties, or at none"
            )


def _agree(parties: Parties, operation: str) -> bytes:
    """16 bytes that nobody knew before and all parties know now: the sum of the next two words of the three streams of
    masks, of which each party knows but two. A session's seed decides them."""
    words = [parties.common(stream, (2,)) for stream in range(PARTIES)]
    own = torch.stack([known(words[rank]) for rank in parties.local])
    return parties.open_rows(own, operation).numpy().tobytes()
