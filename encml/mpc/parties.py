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
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from encml.errors import ProtocolError
from encml.net.ledger import Ledger
from encml.net.rounds import SharedRounds
from encml.net.transport import PARTIES, Message, Transport
from encml.ring.devices import CPU, host
from encml.ring.kernels.elementwise import Integers, Words, add_masked
from encml.ring.memory import keep_freed
from encml.ring.prg import KEY_BYTES, KeyStream, fresh_key

T = TypeVar("T")
Row = tuple[int, Words, Words]
"""A row of masked terms in the making: its place on the party axis, its own mask, and the one to be taken off."""


class Parties:
    """The parties of one session that live in this process.

    Setup agrees on the pairwise mask keys over the transport: 1 round, 16 bytes a party. Stream i is known to
    parties i and i + 1, the two that hold share i + 1. ``seed`` makes the masks reproducible, for tests and
    benchmarks only; without it the keys come from the operating system. The process keeps memory that it frees: see
    ``encml.ring.memory``.

    Payloads of numbers lie on ``device``; bits, and whatever travels, in the processor's memory: see
    ``encml.ring.devices``.
    """

    def __init__(self, transport: Transport, seed: int | None = None, device: torch.device = CPU) -> None:
        keep_freed()
        self.device = device
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
    # Every mask of every protocol comes from one of the two: ``masks`` and ``mask_rows``.

    def masks(
        self, stream: int, shape: Sequence[int], dtype: type[np.integer[Any]] = np.int64, to: Integers | None = None
    ) -> Integers | None:
        """The next mask that parties ``stream`` and ``stream + 1`` share; None where neither lives here.

        to: contiguous memory of that shape and dtype to put it into, rather than fresh memory.
        """
        source = self._streams.get(stream % PARTIES)
        if source is None:
            return None
        mask = np.empty(tuple(shape), dtype) if to is None else to
        source.fill(mask)
        return mask

    def common(self, stream: int, shape: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor | None:
        """``masks`` as a tensor."""
        if stream % PARTIES not in self._streams:
            return None
        mask = torch.empty(tuple(shape), dtype=dtype)
        self.masks(stream, shape, to=mask.numpy())
        return mask

    def mask_rows(self, shape: Sequence[int], room: Words | None = None) -> tuple[Words, list[Row]]:
        """What rows (P, *shape) are masked with before they are reshared; no communication.

        Party i's mask is what stream i gives, less (or XOR) what stream i - 1 gives: uniform for each party, and zero
        over all three. Returns memory for a payload (S, *shape), or ``room`` with the same or (P, *shape), and for
        every party here its place, its row of that memory, flat, which holds the first part, and the second part, flat.
        They are to be combined in this order, for a second part is memory of a row that comes later.
        """
        room = np.empty((self.shares_here, *shape), np.int64) if room is None else room
        flat = [room[place : place + 1].reshape(-1) for place in range(len(room))]
        for place, rank in enumerate(self.local):
            self._streams[rank].fill(room[place : place + 1])
        if self.here == PARTIES:
            last = flat[2].copy()
            return room, [(2, flat[2], flat[1]), (1, flat[1], flat[0]), (0, flat[0], last)]
        previous = room[1:] if len(room) > 1 else np.empty_like(room)
        self._streams[(self.local[0] - 1) % PARTIES].fill(previous)
        return room, [(0, flat[0], previous.reshape(-1))]

    def masked(self, rows: Tensor, room: Words | None = None) -> Words:
        """Additive rows (P, *shape) with masks that add up to zero, in memory as ``mask_rows`` gives it."""
        terms = host(rows)
        room, masks = self.mask_rows(rows.shape[1:], room)
        for place, own, previous in masks:
            add_masked(terms[place].ravel(), own, previous)
        return room

    def masked_rows(self, rows: Tensor) -> Words:
        """Additive rows (P, *shape) with masks that add up to zero: (P, n), in fresh memory."""
        return self.masked(rows, np.empty(tuple(rows.shape), np.int64)).reshape(self.here, -1)

    def zero(self, shape: Sequence[int]) -> Tensor:
        """Rows (P, *shape) that are uniform but add up to zero over the three parties; no communication."""
        room, masks = self.mask_rows(shape, np.empty((self.here, *shape), np.int64))
        for _, own, previous in masks:
            np.subtract(own, previous, out=own)
        return torch.from_numpy(room).to(self.device)

    # Layout --------------------------------------------------------------------------------------------------

    def place_of(self, index: int) -> int | None:
        """Where share x_index (modulo 3) is in a payload, None if no party here knows it."""
        if self.here == PARTIES:
            return index % PARTIES
        place = (index - self.local[0]) % PARTIES
        return place if place < 2 else None

    def share(self, payload: Tensor, index: int) -> Tensor | None:
        """Share x_index (modulo 3) of a payload, None if no party here knows it."""
        place = self.place_of(index)
        return None if place is None else payload[place]

    def words(self, payload: Tensor | Words, index: int) -> Words:
        """Share x_index (modulo 3) of a payload, flat and contiguous: a view if that can be. It must be known here."""
        array = host(payload) if isinstance(payload, Tensor) else payload
        words: Words = array[known(self.place_of(index))].ravel()
        return words

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
        return self.pass_back(self.masked(rows), operation).to(self.device)

    def pass_back(self, payload: Words, operation: str) -> Tensor:
        """Complete a payload, on the processor, whose rows of the parties here are masked terms.

        Party i sends its own to party i - 1.
        """
        result = torch.from_numpy(payload)
        if self.here == PARTIES:
            self.net.rotate(result, -1, operation)
        else:
            payload[1:] = self.net.rotate(result[:1], -1, operation).numpy()
        return result

    def open_rows(self, rows: Tensor, operation: str) -> Tensor:
        """Reveal the sum (*shape) of additive rows to every party; 1 round, 16 B per word and party."""
        masked = torch.from_numpy(self.masked(rows, np.empty(tuple(rows.shape), np.int64)))
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

    def pair(self, first: int, shape: Sequence[int]) -> Pair:
        """Begin to reshare what parties ``first`` and ``first`` + 1 know a term each of: see ``Pair``."""
        return Pair(self, first, tuple(shape))

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

        1 round, 16 B per word in all: see ``Pair``.
        """
        pair, remove = self.pair(first, shape), np.bitwise_xor if xor else np.subtract
        if pair.left is not None:
            remove(host(known(left)).ravel(), known(pair.low), out=pair.left)
        if pair.right is not None:
            remove(host(known(right)).ravel(), known(pair.high), out=pair.right)
        return pair.reshare(operation, xor=xor)


class Pair:
    """x = left + right (or XOR), known to party p = ``first`` and party p + 1, on the way to a fresh payload.

    With PRG_i the stream of parties i and i + 1:
        x_p     = PRG_{p-1}                              known to p - 1 and p
        x_{p+2} = PRG_{p+1}                              known to p + 1 and p + 2
        x_{p+1} = (left - x_p) + (right - x_{p+2})       p and p + 1 tell each other their bracket
    1 round, 16 B per word in all, party p + 2 silent; each bracket is masked by a stream its receiver lacks.

    Whoever holds one of these writes left - ``low`` to ``left`` and right - ``high`` to ``right`` (or XOR), flat, where
    they are not None, and then calls ``reshare``.
    """

    __slots__ = ("_first", "_parties", "_payload", "_shape", "high", "left", "low", "right")

    def __init__(self, parties: Parties, first: int, shape: tuple[int, ...]) -> None:
        self._parties, self._first, self._shape = parties, first, shape
        self._payload: Words = np.empty((parties.shares_here, *shape), np.int64)
        self.low, self.high = self._mask(first - 1), self._mask(first + 1)
        middle = self._slot(first + 1)
        self.left = middle if parties.plays(first) else None
        self.right = None
        if parties.plays(first + 1):
            self.right = middle if self.left is None else np.empty_like(self.left)

    def _slot(self, index: int) -> Words | None:
        place = self._parties.place_of(index)
        return None if place is None else self._payload[place : place + 1].reshape(-1)

    def _mask(self, stream: int) -> Words | None:
        """Stream i's mask is share i + 1."""
        place = self._parties.place_of(stream + 1)
        if place is None:
            return None
        self._parties.masks(stream, (1, *self._shape), to=self._payload[place : place + 1])
        return self._slot(stream + 1)

    def reshare(self, operation: str, *, xor: bool = False) -> Tensor:
        """Exchange the brackets, and return the payload (S, *shape)."""
        one, two = self._first % PARTIES, (self._first + 1) % PARTIES
        to_two, to_one = self._parties.net.exchange(
            [self._message(one, two, self.left), self._message(two, one, self.right)], operation
        )
        add = np.bitwise_xor if xor else np.add
        if self.left is not None:
            add(self.left, flat(to_one) if self.right is None else self.right, out=self.left)
        elif self.right is not None:
            add(self.right, flat(to_two), out=self.right)
        payload = torch.from_numpy(self._payload)
        return payload if xor else payload.to(self._parties.device)

    def _message(self, source: int, destination: int, bracket: Words | None) -> Message:
        payload = None if bracket is None else torch.from_numpy(bracket.reshape(self._shape))
        return Message(source, destination, payload, self._shape, torch.int64)


def known(share: T | None) -> T:
    """A share that this process must hold at this step; its absence is a bug in a protocol."""
    if share is None:
        raise ProtocolError("a protocol step used a share that no party in this process holds")
    return share


def flat(received: Tensor | None) -> Integers:
    """The elements of a message that this process must have received, flat and contiguous."""
    return known(received).numpy().ravel()


def _derived(root: bytes, context: bytes) -> bytes:
    return hashlib.blake2b(context, key=root, digest_size=KEY_BYTES, person=b"encml masks").digest()


def _test_key(seed: int, rank: int) -> bytes:
    return hashlib.sha256(f"encml test key {seed} {rank}".encode()).digest()[:KEY_BYTES]
