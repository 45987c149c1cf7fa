"""The three parties as protocols see them: which live here, the masks they share, the wire between them.

Replicated secret sharing over Z_2^64 (Araki et al. 2016): x = x0 + x1 + x2, party i holds x_i and x_{i+1} (indices
modulo 3), so any one party's view is uniformly random and any two parties know x.

Two layouts, both with one leading axis in front of the logical shape:

* a *payload* (S, *shape) holds the shares known in this process: all three in the in-process session, (x_r, x_{r+1})
  in the process of party r;
* *rows* (P, *shape) hold one additive term z_i for each party that lives here, x = z0 + z1 + z2: what a local
  multiplication gives, before it is reshared.

A protocol is written once over these axes. Steps in which parties differ name shares by index (``share``) and get
None for what is not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from encml.errors import ProtocolError
from encml.net.ledger import Ledger
from encml.net.rounds import SharedRounds
from encml.net.transport import PARTIES, Message, Transport
from encml.ring.prg import KEY_BYTES, KeyStream, fresh_key


class Parties:
    """The parties of one session that live in this process.

    Setup agrees on the pairwise mask keys over the transport: 1 round, 16 bytes a party. Stream i is known to
    parties i and i + 1, the two that hold share i + 1. ``seed`` makes the masks reproducible, for tests and
    benchmarks only; without it the keys come from the operating system.
    """

    def __init__(self, transport: Transport, seed: int | None = None) -> None:
        self.net = SharedRounds(transport)
        self.local = transport.local
        self.here = len(transport.local)
        keys = [fresh_key() if seed is None else _test_key(seed, rank) for rank in self.local]
        own = torch.tensor([list(key) for key in keys], dtype=torch.uint8)
        received = transport.rotate(own, +1, "setup")
        self._roots = {rank: bytes(own[row].tolist()) for row, rank in enumerate(self.local)}
        if self.here == 1:
            self._roots[(self.local[0] - 1) % PARTIES] = bytes(received[0].tolist())
        self._streams: dict[int, KeyStream] = {}
        self._lead = 0
        self.rekey(b"")

    def __repr__(self) -> str:
        return f"Parties(local={self.local})"

    @property
    def ledger(self) -> Ledger:
        """Rounds and bytes of this session."""
        return self.net.ledger

    @property
    def shares_here(self) -> int:
        """S: how many of the three shares are known in this process."""
        return PARTIES if self.here == PARTIES else 2

    @property
    def place(self) -> tuple[int, ...]:
        """Where this process is in the session: rounds, and bytes drawn from each stream of masks."""
        return self.ledger.rounds, *(stream.drawn for stream in self._streams.values())

    def plays(self, rank: int) -> bool:
        """Whether party ``rank`` (modulo 3) lives in this process."""
        return rank % PARTIES in self.local

    def next_lead(self) -> int:
        """The party that plays the first role in the next asymmetric protocol; takes turns to balance the load."""
        self._lead = (self._lead + 1) % PARTIES
        return self._lead

    def together(self, *protocols: Callable[[], Any]) -> list[Any]:
        """Run independent protocols in the same rounds, and return what they return: see ``SharedRounds.together``."""
        return self.net.together(protocols)

    # Keys ----------------------------------------------------------------------------------------------------

    def rekey(self, context: bytes) -> None:
        """Begin all streams of masks anew, under keys derived from the session's roots and ``context``.

        Every party does so at the same place with the same context. A context stands for one computation on one set of
        inputs: a pair of roots and context that came back for anything else would use masks twice.
        """
        self._streams = {stream: KeyStream(_derived(root, context)) for stream, root in self._roots.items()}
        self._lead = 0

    @property
    def roots(self) -> dict[int, bytes]:
        """The keys that all masks come from, by stream: as secret as this process's shares. For checkpoints only."""
        return dict(self._roots)

    def replace_roots(self, roots: Mapping[int, bytes]) -> None:
        """Go on with the roots of an earlier session of the same party; ``rekey`` follows.

        1 round, 16 bytes a party, in which neighbours make sure that theirs is the same session.
        """
        if roots.keys() != self._roots.keys() or any(len(root) != KEY_BYTES for root in roots.values()):
            raise ProtocolError(
                f"roots for the streams {sorted(roots)} do not fit the parties {self.local}, which have the streams "
                f"{sorted(self._roots)}, of {KEY_BYTES} bytes each"
            )
        digests = {stream: _derived(root, b"the same root") for stream, root in roots.items()}
        own = torch.stack([torch.frombuffer(bytearray(digests[rank]), dtype=torch.int64) for rank in self.local])
        theirs = self.net.rotate(own, +1, "resume")
        for row, rank in enumerate(self.local):
            if theirs[row].numpy().tobytes() != digests[(rank - 1) % PARTIES]:
                raise ProtocolError("the parties go on from different sessions: all need files of the same run")
        self._roots = dict(roots)

    # Masks ---------------------------------------------------------------------------------------------------

    def common(self, stream: int, shape: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor | None:
        """The next mask that parties ``stream`` and ``stream + 1`` share; None where neither lives here."""
        source = self._streams.get(stream % PARTIES)
        return None if source is None else source.words(tuple(shape), dtype)

    def zero(self, shape: Sequence[int]) -> Tensor:
        """Rows (P, *shape) that are uniform but add up to zero over the three parties; no communication."""
        own, previous = self._mask_rows(shape)
        return own.sub_(previous)

    def zero_bits(self, shape: Sequence[int]) -> Tensor:
        """Rows (P, *shape) that are uniform but XOR to zero over the three parties; no communication."""
        own, previous = self._mask_rows(shape)
        return own.bitwise_xor_(previous)

    def _mask_rows(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        shape = tuple(shape)
        if self.here == PARTIES:
            own = torch.empty((PARTIES, *shape), dtype=torch.int64)
            for i in range(PARTIES):
                own[i] = self._streams[i].words(shape)
            return own, own.roll(1, 0)
        rank = self.local[0]
        own = self._streams[rank].words((1, *shape))
        return own, self._streams[(rank - 1) % PARTIES].words((1, *shape))

    # Layout --------------------------------------------------------------------------------------------------

    def share(self, payload: Tensor, index: int) -> Tensor | None:
        """Share x_index (modulo 3) of a payload, None if no party here knows it."""
        index %= PARTIES
        if self.here == PARTIES:
            return payload[index]
        position = (index - self.local[0]) % PARTIES
        return payload[position] if position < 2 else None

    def row(self, rank: int) -> int:
        """The position of party ``rank`` on the party axis."""
        return self.local.index(rank % PARTIES)

    def assemble(self, shares: Sequence[Tensor | None], first: int = 0) -> Tensor:
        """A payload from shares x_first, x_{first+1}, x_{first+2}, each known (or None) as in ``share``."""
        indices = range(PARTIES) if self.here == PARTIES else (self.local[0], self.local[0] + 1)
        return torch.stack([known(shares[(i - first) % PARTIES]) for i in indices])

    def held(self, payload: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(x_i, x_{i+1}) for every party i here, as views of the payload."""
        return [(payload[i], payload[(i + 1) % len(payload)]) for i in range(self.here)]

    # Resharing -----------------------------------------------------------------------------------------------

    def reshare(self, rows: Tensor, operation: str) -> Tensor:
        """Additive rows to a payload: party i sends z_i + alpha_i to party i - 1. 1 round, 8 B per word and party.

        Without the fresh mask alpha party i - 1 would learn party i's local term (Araki et al. 2016).
        """
        return self._pass_back(self.zero(rows.shape[1:]).add_(rows), operation)

    def reshare_bits(self, rows: Tensor, operation: str) -> Tensor:
        """As ``reshare`` for words whose bits are XOR-shared over the rows."""
        return self._pass_back(self.zero_bits(rows.shape[1:]).bitwise_xor_(rows), operation)

    def _pass_back(self, masked: Tensor, operation: str) -> Tensor:
        received = self.net.rotate(masked, -1, operation)
        return masked if self.here == PARTIES else torch.cat([masked, received])

    def open_rows(self, rows: Tensor, operation: str) -> Tensor:
        """Reveal the sum (*shape) of additive rows to every party; 1 round, 16 B per word and party."""
        masked = self.zero(rows.shape[1:]).add_(rows)
        everyone = self._to_everyone(masked)
        received = self.net.exchange(everyone, operation)
        if self.here == PARTIES:
            return masked.sum(0)
        return sum((part for part in received if part is not None), masked[0])

    def tell_all(self, rows: Tensor, operation: str) -> Tensor:
        """What every party says of itself, rows (P, *shape), made public: (3, *shape). 1 round, twice the row a party.

        For what is no secret: counts, shapes, digests.
        """
        everyone = self._to_everyone(rows)
        received = self.net.exchange(everyone, operation)
        if self.here == PARTIES:
            return rows.clone()
        told = {message.source: part for message, part in zip(everyone, received, strict=True) if part is not None}
        return torch.stack([rows[0] if rank in self.local else told[rank] for rank in range(PARTIES)])

    def _to_everyone(self, rows: Tensor) -> list[Message]:
        shape = tuple(rows.shape[1:])
        return [
            Message(src, dst, rows[self.row(src)] if self.plays(src) else None, shape, rows.dtype)
            for src in range(PARTIES)
            for dst in range(PARTIES)
            if src != dst
        ]

    def reshare_pair(
        self,
        first: int,
        left: Tensor | None,
        right: Tensor | None,
        shape: Sequence[int],
        operation: str,
        *,
        xor: bool = False,
    ) -> Tensor:
        """x = left + right (or XOR), known to party ``first`` and party ``first + 1``, to a fresh payload (S, *shape).

        With p = first and PRG_i the stream of parties i and i + 1:
            x_p     = PRG_{p-1}                              known to p - 1 and p
            x_{p+2} = PRG_{p+1}                              known to p + 1 and p + 2
            x_{p+1} = (left - x_p) + (right - x_{p+2})       p and p + 1 tell each other their bracket
        1 round, 16 B per word in all, party p + 2 silent; each bracket is masked by a stream its receiver lacks.
        """
        shape = tuple(shape)
        low, high = self.common(first - 1, shape), self.common(first + 1, shape)
        ours = None if left is None else _remove(left, low, xor)
        theirs = None if right is None else _remove(right, high, xor)
        one, two = first % PARTIES, (first + 1) % PARTIES
        to_two, to_one = self.net.exchange(
            [Message(one, two, ours, shape, torch.int64), Message(two, one, theirs, shape, torch.int64)], operation
        )
        brackets = (ours, to_one) if ours is not None else (theirs, to_two)
        middle: Tensor | None = None
        if ours is not None or theirs is not None:
            a, b = known(brackets[0]), known(brackets[1])
            middle = a ^ b if xor else a + b
        return self.assemble([low, middle, high], first)


def known(share: Tensor | None) -> Tensor:
    """A share that this process must hold at this step; its absence is a bug in a protocol."""
    if share is None:
        raise ProtocolError("a protocol step used a share that no party in this process holds")
    return share


def _remove(value: Tensor, mask: Tensor | None, xor: bool) -> Tensor:
    return value ^ known(mask) if xor else value - known(mask)


def _derived(root: bytes, context: bytes) -> bytes:
    return hashlib.blake2b(context, key=root, digest_size=KEY_BYTES, person=b"encml masks").digest()


def _test_key(seed: int, rank: int) -> bytes:
    return hashlib.sha256(f"encml test key {seed} {rank}".encode()).digest()[:KEY_BYTES]
