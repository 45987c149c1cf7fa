"""How three parties agree, over their own connections, on what to compute next.

Each party gets its part of a request from the client, at its own time; the client may also send to some of them only.
So party 0 proposes what it has, and then every party tells both others what it has of that: in two short rounds all
three know the same, and each finds out by itself what follows (``encml.serving.jobs.choose``). A proposal of nothing,
sent now and then, shows that all are alive.

With what it has, a party says marks of it: codes under a key that one other party has, of what those two hold alike.
All three can compare them, so all know whether parts fit together, and nobody learns anything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from encml.errors import PartyTimeout, ProtocolError
from encml.mpc.parties import Parties, known
from encml.net.transport import PARTIES, Message, Transport

MAX_CANDIDATES = 32
LEADER = 0
FOLLOWERS = tuple(rank for rank in range(PARTIES) if rank != LEADER)

_PROPOSAL = (1 + 6 * MAX_CANDIDATES,)
_MARK_WORDS = 2
_STATEMENT = 1 + 4 * _MARK_WORDS


class Answer(IntEnum):
    """What a party says about its part of a request."""

    MISSING = 0
    READY = 1
    DIFFERENT = 2
    """It has another sharing of the model, another batch size, or does not serve the model."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request as parties speak about it: its id (16 bytes), which model, how many examples."""

    request: bytes
    tag: int
    batch: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate, how many requests its model may still answer by party 0's count (None: no limit), and whether it
    has waited too long for its parts."""

    candidate: Candidate
    remaining: int | None = None
    late: bool = False


Marks = tuple[bytes, bytes]
"""Of what a party holds alike with the one before it, and with the next one; 16 bytes each."""
NO_MARKS: Marks = (bytes(8 * _MARK_WORDS), bytes(8 * _MARK_WORDS))


@dataclass(frozen=True, slots=True)
class Statement:
    """What one party says about one candidate, with marks of its shares of the model and of the input."""

    answer: Answer
    model: Marks = NO_MARKS
    shares: Marks = NO_MARKS


class Marker:
    """Makes the marks of one party in one session. No communication; the keys come from the pairwise streams."""

    def __init__(self, parties: Parties) -> None:
        (rank,) = parties.local
        keys = [parties.common(stream, (2,)) for stream in range(PARTIES)]
        self._keys = [known(keys[stream % PARTIES]).numpy().tobytes() for stream in (rank - 1, rank)]

    def __repr__(self) -> str:
        return "Marker()"

    def mark(self, request: bytes, digests: tuple[bytes, bytes]) -> Marks:
        """Marks of what has these digests, for one request."""
        first, second = (
            hashlib.blake2b(request + digest, key=key, digest_size=8 * _MARK_WORDS).digest()
            for digest, key in zip(digests, self._keys, strict=True)
        )
        return first, second


def unfit(marks: Sequence[Marks]) -> tuple[int, ...]:
    """The ranks whose marks differ from those of the party before; ``marks`` by rank."""
    return tuple(rank for rank in range(PARTIES) if marks[rank][0] != marks[rank - 1][1])


def propose(net: Transport, proposals: Sequence[Proposal]) -> None:
    """The leader's first round."""
    numbers = [len(proposals)]
    for proposal in proposals:
        candidate = proposal.candidate
        numbers += [*_words(candidate.request), candidate.tag, candidate.batch]
        numbers += [-1 if proposal.remaining is None else proposal.remaining, int(proposal.late)]
    message = torch.zeros(_PROPOSAL, dtype=torch.int64)
    message[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
    net.exchange([Message(LEADER, to, message, _PROPOSAL, torch.int64) for to in FOLLOWERS], "serve: propose")


def listen(net: Transport) -> list[Proposal]:
    """A follower's first round: what the leader proposes."""
    received = net.exchange([Message(LEADER, to, None, _PROPOSAL, torch.int64) for to in FOLLOWERS], "serve: propose")
    (message,) = (tensor for tensor in received if tensor is not None)
    count, *numbers = message.tolist()
    rows = [numbers[6 * k : 6 * k + 6] for k in range(max(0, min(count, MAX_CANDIDATES)))]
    if len(rows) != count or any(batch < 1 or left < -1 or late not in (0, 1) for *_, batch, left, late in rows):
        raise ProtocolError(f"party {LEADER} proposed something malformed")
    return [
        Proposal(Candidate(_bytes([high, low]), tag, batch), None if left < 0 else left, bool(late))
        for high, low, tag, batch, left, late in rows
    ]


def tell(net: Transport, rank: int, statements: Sequence[Statement]) -> list[tuple[Statement, ...]]:
    """Everybody's second round: every party's statements, by candidate and rank."""
    rows = [[int(s.answer), *_words(b"".join(s.model + s.shares))] for s in statements]
    shape = (1 + len(rows), _STATEMENT)
    own = torch.tensor([[0] * _STATEMENT, *rows], dtype=torch.int64)
    pairs = [(source, to) for source in range(PARTIES) for to in range(PARTIES) if source != to]
    messages = [Message(a, b, own if a == rank else None, shape, torch.int64) for a, b in pairs]
    said: dict[int, list[Statement]] = {rank: list(statements)}
    for (source, to), tensor in zip(pairs, net.exchange(messages, "serve: answer"), strict=True):
        if to == rank:
            said[source] = _statements(tensor, source)
    return list(zip(*(said[source] for source in range(PARTIES)), strict=True))


def _statements(message: Tensor | None, rank: int) -> list[Statement]:
    if message is None:
        raise PartyTimeout(f"party {rank} gave no answer", rank=rank)
    found = []
    for answer, *words in message[1:].tolist():
        if answer not in Answer._value2member_map_:
            raise ProtocolError(f"party {rank} answered something malformed")
        marks = [_bytes(words[k : k + _MARK_WORDS]) for k in range(0, len(words), _MARK_WORDS)]
        found.append(Statement(Answer(answer), (marks[0], marks[1]), (marks[2], marks[3])))
    return found


def _words(data: bytes) -> list[int]:
    return [int.from_bytes(data[k : k + 8], "little", signed=True) for k in range(0, len(data), 8)]


def _bytes(words: Sequence[int]) -> bytes:
    return b"".join(word.to_bytes(8, "little", signed=True) for word in words)
