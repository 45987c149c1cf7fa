"""How three parties agree, over their own connections, on what to compute next.

Each party gets its part of a request from the client, at its own time; the client may also send to some of them
only. So party 0 proposes what it has, the others answer for each what they have, and party 0 decides: in three short
rounds, of fixed shapes, all three know the same. A proposal of nothing, sent now and then, shows that all are alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from encml.errors import PartyTimeout, ProtocolError
from encml.net.transport import PARTIES, Message, Transport

MAX_CANDIDATES = 32
LEADER = 0
FOLLOWERS = tuple(rank for rank in range(PARTIES) if rank != LEADER)

_PROPOSAL = (1 + 4 * MAX_CANDIDATES,)
_ANSWER = (MAX_CANDIDATES,)
_DECISION = (MAX_CANDIDATES, 2)


class Answer(IntEnum):
    """What a follower says about its part of a request."""

    MISSING = 0
    READY = 1
    DIFFERENT = 2
    """It has another sharing of the model, another batch size, or does not serve the model."""


class Verdict(IntEnum):
    """What the leader decides about a request."""

    LATER = 0
    RUN = 1
    CAPPED = 2
    INCOMPLETE = 3
    DIFFERENT = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request as parties speak about it: its id (16 bytes), which model, how many examples."""

    request: bytes
    tag: int
    batch: int


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on one request, and which party is the reason if it is not to run."""

    verdict: Verdict
    rank: int = LEADER


def propose(net: Transport, candidates: Sequence[Candidate]) -> list[list[Answer]]:
    """The leader's first two rounds: the answers of each follower."""
    numbers = [len(candidates)]
    for candidate in candidates:
        high, low = (int.from_bytes(half, "little", signed=True) for half in _halves(candidate.request))
        numbers += [high, low, candidate.tag, candidate.batch]
    proposal = torch.zeros(_PROPOSAL, dtype=torch.int64)
    proposal[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
    net.exchange([Message(LEADER, to, proposal, _PROPOSAL, torch.int64) for to in FOLLOWERS], "serve: propose")
    answers = net.exchange([Message(rank, LEADER, None, _ANSWER, torch.int64) for rank in FOLLOWERS], "serve: answer")
    return [_answers(answer, rank, len(candidates)) for answer, rank in zip(answers, FOLLOWERS, strict=True)]


def listen(net: Transport) -> list[Candidate]:
    """A follower's first round: what the leader proposes."""
    received = net.exchange([Message(LEADER, to, None, _PROPOSAL, torch.int64) for to in FOLLOWERS], "serve: propose")
    numbers = _mine(received).tolist()
    count, rest = numbers[0], numbers[1:]
    if not 0 <= count <= MAX_CANDIDATES or any(rest[3 : 4 * count : 4][k] < 1 for k in range(count)):
        raise ProtocolError(f"party {LEADER} proposed something malformed")
    found = []
    for high, low, tag, batch in zip(*(rest[k : 4 * count : 4] for k in range(4)), strict=True):
        request = b"".join(half.to_bytes(8, "little", signed=True) for half in (high, low))
        found.append(Candidate(request, tag, batch))
    return found


def answer(net: Transport, rank: int, answers: Sequence[Answer]) -> None:
    """A follower's second round."""
    numbers = torch.zeros(_ANSWER, dtype=torch.int64)
    numbers[: len(answers)] = torch.tensor([int(a) for a in answers], dtype=torch.int64)
    net.exchange(
        [Message(r, LEADER, numbers if r == rank else None, _ANSWER, torch.int64) for r in FOLLOWERS], "serve: answer"
    )


def decide(net: Transport, decisions: Sequence[Decision]) -> None:
    """The leader's third round, where it proposed anything."""
    numbers = torch.zeros(_DECISION, dtype=torch.int64)
    numbers[: len(decisions)] = torch.tensor([[int(d.verdict), d.rank] for d in decisions], dtype=torch.int64)
    net.exchange([Message(LEADER, to, numbers, _DECISION, torch.int64) for to in FOLLOWERS], "serve: decide")


def obey(net: Transport, count: int) -> list[Decision]:
    """A follower's third round: the decisions on ``count`` candidates."""
    received = net.exchange([Message(LEADER, to, None, _DECISION, torch.int64) for to in FOLLOWERS], "serve: decide")
    decisions = []
    for verdict, rank in _mine(received)[:count].tolist():
        if verdict not in Verdict._value2member_map_ or not 0 <= rank < PARTIES:
            raise ProtocolError(f"party {LEADER} decided something malformed")
        decisions.append(Decision(Verdict(verdict), rank))
    return decisions


def _answers(numbers: Tensor | None, rank: int, count: int) -> list[Answer]:
    if numbers is None:
        raise PartyTimeout(f"party {rank} gave no answer", rank=rank)
    values = numbers[:count].tolist()
    if any(value not in Answer._value2member_map_ for value in values):
        raise ProtocolError(f"party {rank} answered something malformed")
    return [Answer(value) for value in values]


def _mine(received: Sequence[Tensor | None]) -> Tensor:
    """What came for this party."""
    (found,) = (tensor for tensor in received if tensor is not None)
    return found


def _halves(request: bytes) -> tuple[bytes, bytes]:
    return request[:8], request[8:]
