"""Bodies of known length, errors that come out as they went in, and control messages that are checked."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from party_threads import run_apart
from torch import Tensor

from encml import errors
from encml.errors import EncmlError, PartyError, PartyTimeout, ProtocolError, ServingError
from encml.mpc.dealing import deal
from encml.mpc.parties import Parties
from encml.net.ledger import Ledger
from encml.net.transport import Message, Transport
from encml.serving import control
from encml.serving.control import MAX_CANDIDATES, Answer, Candidate, Marker, Proposal, Statement, unfit
from encml.serving.jobs import CapReached
from encml.serving.wire import (
    Problem,
    pack_parcel,
    pack_share,
    parcel_bytes,
    read_message,
    unpack_parcel,
    unpack_share,
)


@pytest.mark.parametrize("shape", [(2, 3), (1,), (4, 1, 5, 5)])
def test_parcels_arrive_as_they_were_dealt(shape: tuple[int, ...]) -> None:
    x = torch.randint(-(2**62), 2**62, shape)
    received = []
    for rank, parcel in enumerate(deal(x)):
        body = pack_parcel(parcel)
        assert len(body) == parcel_bytes(rank, shape[0], shape[1:])
        received.append(unpack_parcel(body, rank, shape[0], shape[1:]))
        assert torch.equal(received[-1], parcel.expand())
    assert torch.equal(received[0][0] + received[1][0] + received[2][0], x)
    assert parcel_bytes(0, *((shape[0], shape[1:]))) == 32


@pytest.mark.parametrize("rank", range(3))
def test_a_body_of_another_length_is_refused(rank: int) -> None:
    body = pack_parcel(deal(torch.zeros(2, 3, dtype=torch.int64))[rank])
    for wrong in (body[:-1], body + b"\0", b"", body[:16]):
        with pytest.raises(ServingError, match="bytes for party"):
            unpack_parcel(wrong, rank, 2, (3,))


def test_shares_arrive_as_they_were_sent() -> None:
    share = torch.randint(-(2**62), 2**62, (3, 4))[:, ::2]
    assert torch.equal(unpack_share(pack_share(share), (3, 2), 0), share)
    with pytest.raises(PartyError, match="party 2 answered with 7 bytes") as caught:
        unpack_share(b"1234567", (3, 2), 2)
    assert caught.value.rank == 2


@pytest.mark.parametrize(
    "kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, EncmlError)]
)
def test_errors_come_out_as_they_went_in(kind: type[EncmlError]) -> None:
    error = kind("what happened", rank=2) if issubclass(kind, PartyError) else kind("what happened")
    found = read_message(Problem, Problem.of(error, 1).model_dump_json(), "it").exception()
    assert type(found) is kind
    assert str(found) == "what happened"
    if isinstance(found, PartyError):
        assert found.rank == 2


def test_errors_of_unknown_kinds_are_refusals() -> None:
    assert type(Problem.of(CapReached("no more"), 1).exception()) is ServingError
    assert type(Problem(error="x", kind="Exception").exception()) is ServingError
    assert type(Problem(error="x", kind="annotations").exception()) is ServingError
    for text in ("", "{}", "[]", '{"error": 1, "kind": "x"}', '{"error": "x", "kind": "y", "more": 1}'):
        with pytest.raises(ServingError, match="it is malformed"):
            read_message(Problem, text, "it")


class Scripted(Transport):
    """A transport that says what the test wants, to one party."""

    def __init__(self, rank: int, *says: Tensor) -> None:
        self.local = (rank,)
        self.ledger = Ledger()
        self.says = list(says)
        self.sent: list[Tensor] = []

    def exchange(self, messages: Sequence[Message], operation: str) -> list[Tensor | None]:
        self.sent += [m.payload for m in messages if m.payload is not None]
        return [self.says.pop(0) if m.destination in self.local else None for m in messages]

    def rotate(self, rows: Tensor, step: int, operation: str) -> Tensor:
        raise AssertionError("not used")

    def close(self) -> None:
        pass


PROPOSALS = [
    Proposal(Candidate(bytes(range(16)), -5, 3)),
    Proposal(Candidate(b"\xff" * 16, 2**63 - 1, 1), remaining=7, late=True),
]


def test_what_is_proposed_and_answered_arrives() -> None:
    leader = Scripted(0)
    control.propose(leader, PROPOSALS)
    assert control.listen(Scripted(1, leader.sent[0])) == PROPOSALS
    assert control.listen(Scripted(1, torch.zeros_like(leader.sent[0]))) == []
    marks = [(bytes([k] * 16), bytes(range(k, k + 16))) for k in range(4)]
    said = [
        [Statement(Answer.READY, marks[0], marks[1]), Statement(Answer.DIFFERENT)],
        [Statement(Answer.READY, marks[2], marks[3]), Statement(Answer.MISSING)],
        [Statement(Answer.DIFFERENT), Statement(Answer.READY, marks[1], marks[0])],
    ]
    sent = []
    for rank in range(3):
        party = Scripted(rank, *(torch.zeros(3, 9, dtype=torch.int64) for _ in range(2)))
        control.tell(party, rank, said[rank])
        assert torch.equal(party.sent[0], party.sent[1])
        sent.append(party.sent[0])
    for rank in range(3):
        party = Scripted(rank, *(sent[other] for other in range(3) if other != rank))
        assert control.tell(party, rank, said[rank]) == [tuple(s[k] for s in said) for k in range(2)]
    empty = torch.zeros(1, 9, dtype=torch.int64)
    assert control.tell(Scripted(1, empty, empty), 1, []) == []


def test_malformed_control_messages_are_refused() -> None:
    proposal = torch.zeros(1 + 6 * MAX_CANDIDATES, dtype=torch.int64)
    for count in (-1, MAX_CANDIDATES + 1, 2**62, 1):
        proposal[0] = count  # with one candidate, its batch of 0 is wrong
        with pytest.raises(ProtocolError, match="proposed something malformed"):
            control.listen(Scripted(1, proposal))
    for place, number in ((5, -2), (6, 2), (6, -1)):
        proposal[:7] = torch.tensor([1, 0, 0, 0, 1, 0, 0])
        control.listen(Scripted(1, proposal))
        proposal[place] = number
        with pytest.raises(ProtocolError, match="proposed something malformed"):
            control.listen(Scripted(1, proposal))
    answers = torch.full((2, 9), 7, dtype=torch.int64)
    with pytest.raises(ProtocolError, match="party 1 answered something malformed"):
        control.tell(Scripted(0, answers, answers), 0, [Statement(Answer.MISSING)])


def test_marks_fit_where_two_hold_the_same_and_only_for_one_request() -> None:
    held = [b"x0", b"x1", b"x2"]

    def marks(parties: Parties) -> list[tuple[bytes, bytes]]:
        marker, (rank,) = Marker(parties), parties.local
        own = held[rank], held[(rank + 1) % 3]
        return [
            marker.mark(b"1" * 16, own),
            marker.mark(b"1" * 16, (b"other", own[1]) if rank == 2 else own),
            marker.mark(b"2" * 16, own),
        ]

    found, _ = run_apart(marks, 5)
    good, bad, again = zip(*found, strict=True)
    assert unfit(good) == unfit(again) == ()
    assert unfit(bad) == (2,)
    # A third party has no key to the marks of the other two, and no two requests have the same.
    assert len({mark for pair in (*good, *again) for mark in pair}) == 6


def test_a_time_out_is_still_a_party_error_after_the_wire() -> None:
    found = Problem.of(PartyTimeout("late", rank=1)).exception()
    assert isinstance(found, PartyTimeout)
    assert isinstance(found, TimeoutError)
