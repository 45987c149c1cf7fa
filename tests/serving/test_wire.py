"""Bodies of known length, errors that come out as they went in, and control messages that are checked."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from encml import errors
from encml.errors import EncmlError, PartyError, PartyTimeout, ProtocolError, ServingError
from encml.mpc.dealing import deal
from encml.net.ledger import Ledger
from encml.net.transport import Message, Transport
from encml.serving import control
from encml.serving.control import MAX_CANDIDATES, Answer, Candidate, Decision, Verdict
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


CANDIDATES = [Candidate(bytes(range(16)), -5, 3), Candidate(b"\xff" * 16, 2**63 - 1, 1)]


def test_what_is_proposed_answered_and_decided_arrives() -> None:
    answers = torch.zeros(MAX_CANDIDATES, dtype=torch.int64)
    leader = Scripted(0, answers + 1, answers + 2)
    assert control.propose(leader, CANDIDATES) == [[Answer.READY] * 2, [Answer.DIFFERENT] * 2]
    assert control.listen(Scripted(1, leader.sent[0])) == CANDIDATES
    decisions = [Decision(Verdict.RUN), Decision(Verdict.INCOMPLETE, 2)]
    control.decide(leader, decisions)
    assert control.obey(Scripted(2, leader.sent[-1]), 2) == decisions
    follower = Scripted(2)
    control.answer(follower, 2, [Answer.MISSING, Answer.READY])
    assert follower.sent[0][:3].tolist() == [0, 1, 0]
    assert control.listen(Scripted(1, torch.zeros(1 + 4 * MAX_CANDIDATES, dtype=torch.int64))) == []


def test_malformed_control_messages_are_refused() -> None:
    proposal = torch.zeros(1 + 4 * MAX_CANDIDATES, dtype=torch.int64)
    for count in (-1, MAX_CANDIDATES + 1, 2**62, 1):
        proposal[0] = count  # with one candidate, its batch of 0 is wrong
        with pytest.raises(ProtocolError, match="proposed something malformed"):
            control.listen(Scripted(1, proposal))
    for row in ([9, 0], [1, 3], [-1, 0]):
        decision = torch.zeros(MAX_CANDIDATES, 2, dtype=torch.int64)
        decision[0] = torch.tensor(row)
        with pytest.raises(ProtocolError, match="decided something malformed"):
            control.obey(Scripted(1, decision), 1)
    answers = torch.full((MAX_CANDIDATES,), 7, dtype=torch.int64)
    with pytest.raises(ProtocolError, match="party 1 answered something malformed"):
        control.propose(Scripted(0, answers, answers), CANDIDATES)


def test_a_time_out_is_still_a_party_error_after_the_wire() -> None:
    found = Problem.of(PartyTimeout("late", rank=1)).exception()
    assert isinstance(found, PartyTimeout)
    assert isinstance(found, TimeoutError)
