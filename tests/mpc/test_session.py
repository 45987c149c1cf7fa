"""Sessions: which one is current, when one ends, and what is refused."""

from __future__ import annotations

import logging

import pytest
import torch

from encml.errors import ConfigError, PartyError
from encml.mpc import session as module
from encml.mpc.session import Session, current_session
from encml.mpc.sharing import open_to_all, public


@pytest.fixture(autouse=True)
def untouched_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_default", [])
    monkeypatch.setattr(module, "_warned", [])


def test_without_a_block_one_session_is_made_and_kept() -> None:
    first = current_session()
    assert first.parties.local == (0, 1, 2)
    assert current_session() is first


def test_the_innermost_block_is_current() -> None:
    with Session(seed=1) as outer:
        assert current_session() is outer
        with Session(seed=2) as inner:
            assert current_session() is inner
        assert current_session() is outer
    assert current_session() not in (outer, inner)


def test_a_session_ends_with_its_outermost_block_also_after_an_error() -> None:
    session = Session()
    with pytest.raises(RuntimeError, match="inside"), session, session:
        raise RuntimeError("inside")
    with pytest.raises(PartyError, match="closed"):
        open_to_all(session.parties, public(session.parties, torch.zeros(1, dtype=torch.int64)))
    assert current_session() is not session
    session.close()


def test_a_session_can_be_entered_again_while_it_is_open() -> None:
    with Session() as session:
        with session:
            pass
        x = public(session.parties, torch.tensor([5]))
        assert open_to_all(session.parties, x).tolist() == [5]


@pytest.mark.parametrize("fraction_bits", [-1, 0, 3, 25, 64])
def test_other_fraction_bits_are_refused(fraction_bits: int) -> None:
    with pytest.raises(ConfigError, match="allowed 4 to 24"):
        Session(fraction_bits=fraction_bits)


def test_it_says_once_that_one_process_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "encml"):
        Session()
        Session()
    assert len(caplog.records) == 1
    assert "nothing is hidden" in caplog.text


def test_the_same_seed_gives_the_same_masks_and_another_one_others() -> None:
    masks = [Session(seed=seed).parties.zero((4,)) for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_the_ledger_is_that_of_the_transport() -> None:
    session = Session()
    before = session.ledger.total.rounds
    open_to_all(session.parties, public(session.parties, torch.zeros(1, dtype=torch.int64)))
    assert session.ledger.total.rounds == before + 1
    assert session.ledger.costs["reveal"].sent == (8, 8, 8)


def test_repr_shows_no_secret() -> None:
    assert repr(Session(seed=12345)) == "Session(parties here: (0, 1, 2), fraction_bits=16)"


@pytest.mark.parametrize(("fraction_bits", "comparison_bits"), [(16, 19), (16, 65), (24, 27), (8, 0)])
def test_declared_ranges_without_whole_bits_or_beyond_the_ring_are_refused(
    fraction_bits: int, comparison_bits: int
) -> None:
    with pytest.raises(
        ConfigError, match=f"comparison_bits: found {comparison_bits}, allowed {fraction_bits + 4} to 64"
    ):
        Session(fraction_bits=fraction_bits, comparison_bits=comparison_bits)


def test_bits_of_comparisons() -> None:
    """Twice the range at f fraction bits, or what is declared, and one more for a difference; never more than 64."""
    whole, declared = Session(), Session(comparison_bits=32)
    assert [whole.compared_bits(bits, difference=d) for bits in (0, 16, 32, 40) for d in (True, False)] == [
        *(48, 48, 48, 48, 64, 64, 64, 64)
    ]
    assert [declared.compared_bits(bits, difference=d) for bits in (0, 16, 32, 60) for d in (True, False)] == [
        *(33, 32, 33, 32, 49, 48, 64, 64)
    ]
