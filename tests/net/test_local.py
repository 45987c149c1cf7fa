"""The in-process transport: delivery, booking, the tap, and refusals."""

from __future__ import annotations

import pytest
import torch

from encml.errors import PartyError, ProtocolError
from encml.net.ledger import Ledger
from encml.net.local import LocalTransport
from encml.net.transport import Message


def message(source: int, destination: int, payload: torch.Tensor) -> Message:
    return Message(source, destination, payload, tuple(payload.shape), payload.dtype)


@pytest.mark.parametrize("step", [1, -1])
def test_rotate_row_is_what_the_party_step_before_sent(step: int) -> None:
    rows = torch.arange(3 * 4).view(3, 4)
    got = LocalTransport().rotate(rows, step, "test")
    for rank in range(3):
        assert torch.equal(got[rank], rows[(rank - step) % 3])


def test_rotate_does_not_alias_and_books_one_row_a_party() -> None:
    ledger = Ledger()
    rows = torch.zeros(3, 5, 2, dtype=torch.int16)
    got = LocalTransport(ledger).rotate(rows, 1, "spin")
    rows.fill_(7)
    assert got.abs().sum() == 0
    assert ledger.costs["spin"].rounds == 1
    assert ledger.costs["spin"].sent == (20, 20, 20)


def test_exchange_delivers_copies_in_order_in_one_round() -> None:
    ledger = Ledger()
    first, second = torch.tensor([1, 2]), torch.tensor([True, False, True])
    got = LocalTransport(ledger).exchange([message(0, 1, first), message(2, 0, second)], "send")
    first.fill_(9)
    assert got[0] is not None
    assert got[0].tolist() == [1, 2]
    assert got[1] is not None
    assert got[1].tolist() == [True, False, True]
    assert ledger.total.rounds == 1
    assert ledger.total.sent == (16, 0, 3)


def test_exchange_result_is_contiguous() -> None:
    payload = torch.arange(6).view(2, 3).t()
    (got,) = LocalTransport().exchange([message(0, 1, payload)], "send")
    assert got is not None
    assert got.is_contiguous()
    assert torch.equal(got, payload)


def test_tap_sees_every_message() -> None:
    seen: list[tuple[int, int, list[int], str]] = []
    transport = LocalTransport(tap=lambda s, d, payload, op: seen.append((s, d, payload.tolist(), op)))
    transport.rotate(torch.tensor([[0], [1], [2]]), -1, "spin")
    transport.exchange([message(0, 2, torch.tensor([5]))], "send")
    assert seen == [(0, 2, [0], "spin"), (1, 0, [1], "spin"), (2, 1, [2], "spin"), (0, 2, [5], "send")]


@pytest.mark.parametrize(
    "wrong",
    [
        Message(1, 1, torch.zeros(1), (1,), torch.float32),
        Message(0, 3, torch.zeros(1), (1,), torch.float32),
        Message(0, 1, torch.zeros(1), (2,), torch.float32),
        Message(0, 1, torch.zeros(1), (1,), torch.int64),
        Message(0, 1, None, (1,), torch.int64),
    ],
)
def test_malformed_messages_are_refused(wrong: Message) -> None:
    with pytest.raises(ProtocolError):
        LocalTransport().exchange([wrong], "send")


@pytest.mark.parametrize(("shape", "step"), [((3, 1), 2), ((3, 1), 0), ((2, 1), 1), ((), 1)])
def test_malformed_rotations_are_refused(shape: tuple[int, ...], step: int) -> None:
    with pytest.raises(ProtocolError):
        LocalTransport().rotate(torch.zeros(shape), step, "spin")


def test_calls_after_close_are_refused() -> None:
    transport = LocalTransport()
    transport.close()
    transport.close()
    with pytest.raises(PartyError, match="closed"):
        transport.rotate(torch.zeros(3, 1), 1, "spin")
    with pytest.raises(PartyError, match="closed"):
        transport.exchange([], "send")
