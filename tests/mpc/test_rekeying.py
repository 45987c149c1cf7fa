"""Streams of masks that begin anew: the same roots and context, and only these, give the same masks."""

from __future__ import annotations

import pytest
import torch

from encml.errors import ProtocolError
from encml.mpc.session import Session


def masks(session: Session, count: int = 64) -> torch.Tensor:
    return session.parties.zero((count,))


def test_the_same_roots_and_context_give_the_same_masks_again() -> None:
    first = Session()
    first.rekey(b"step 10")
    expected = masks(first)
    second = Session()
    assert not torch.equal(masks(second), expected)
    second.parties.replace_roots(first.parties.roots)
    second.rekey(b"step 10")
    assert torch.equal(masks(second), expected)
    assert second.parties.next_lead() == 1


@pytest.mark.parametrize("context", [b"", b"step 11", b"step 10 "])
def test_another_context_gives_other_masks(context: bytes) -> None:
    session = Session(seed=1)
    session.rekey(b"step 10")
    before = masks(session)
    session.rekey(context)
    after = masks(session)
    assert not bool((before == after).any())


def test_another_root_gives_other_masks() -> None:
    one, two = Session(), Session()
    one.rekey(b"same")
    two.rekey(b"same")
    assert not bool((masks(one) == masks(two)).any())


def test_public_choices_begin_anew_with_the_masks() -> None:
    session = Session(seed=1)

    def choice() -> torch.Tensor:
        return session.coins.choice(1, "test").words((4,))

    session.rekey(b"a")
    first = choice()
    session.rekey(b"b")
    assert not torch.equal(choice(), first)
    session.rekey(b"a")
    assert torch.equal(choice(), first)


def test_roots_of_another_layout_are_refused() -> None:
    session = Session()
    with pytest.raises(ProtocolError, match="do not fit the parties"):
        session.parties.replace_roots({0: bytes(16), 1: bytes(16)})
    with pytest.raises(ProtocolError, match="16 bytes"):
        session.parties.replace_roots(dict.fromkeys(range(3), bytes(8)))


def test_what_each_says_of_itself_all_know() -> None:
    session = Session()
    rows = torch.arange(12).view(3, 4)
    with session.ledger.measure() as spent:
        told = session.parties.tell_all(rows, "test")
    assert torch.equal(told, rows)
    assert told.data_ptr() != rows.data_ptr()
    assert (spent[0].rounds, spent[0].bytes_per_party) == (1, 2 * 4 * 8)
