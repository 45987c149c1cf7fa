"""Public random choices: the same at every party, fresh, repeated where a ticket is, and checked when they are."""

from __future__ import annotations

import pytest
import torch
from party_threads import run_apart

from encml import Session
from encml.errors import ProtocolError
from encml.mpc import coins as module
from encml.mpc.coins import PublicCoins
from encml.mpc.parties import Parties
from encml.net.local import LocalTransport


def fresh(seed: int | None = None) -> tuple[Parties, PublicCoins]:
    parties = Parties(LocalTransport(), seed)
    return parties, PublicCoins(parties)


def words(coins: PublicCoins, ticket: int) -> list[int]:
    return coins.choice(ticket, "test").words((4,)).tolist()


def test_choices_differ_and_tickets_repeat_them() -> None:
    _, coins = fresh()
    first = [words(coins, ticket) for ticket in range(5)]
    assert len({tuple(w) for w in first}) == 5
    assert [words(coins, ticket) for ticket in (3, 0, 4)] == [first[3], first[0], first[4]]
    assert words(coins, 9) not in first


def test_a_seed_decides_and_without_one_nothing_repeats() -> None:
    found = [words(fresh(seed)[1], 0) for seed in (1, 1, 2, None, None)]
    assert found[0] == found[1]
    assert len({tuple(w) for w in found}) == 4


def test_cost() -> None:
    parties, coins = fresh()
    for ticket, rounds, sent in ((0, 1, 96), (1, 0, 0), (2, 0, 0), (1, 1, 24)):
        with parties.ledger.measure() as spent:
            coins.choice(ticket, "test")
        assert (spent[0].rounds, spent[0].bytes) == (rounds, sent)


def test_parties_apart_choose_alike_whatever_their_tickets() -> None:
    def apart(parties: Parties) -> list[list[int]]:
        coins = PublicCoins(parties)
        own = parties.local[0] * 100
        return [words(coins, own + n) for n in (1, 2, 3, 2)]

    results, _ = run_apart(apart, 5)
    assert results[0] == results[1] == results[2]
    assert results[0][1] == results[0][3]
    assert results[0][0] == words(fresh(5)[1], 1)


def test_parties_that_repeat_different_choices_stop() -> None:
    def apart(parties: Parties) -> None:
        coins = PublicCoins(parties)
        for ticket in (1, 2):
            words(coins, ticket)
        words(coins, 1 if parties.plays(0) else 2)

    with pytest.raises(ProtocolError, match="different random choices"):
        run_apart(apart, 5)


def test_a_party_that_repeats_alone_stops_the_others() -> None:
    def apart(parties: Parties) -> None:
        coins = PublicCoins(parties)
        words(coins, 1)
        words(coins, 1 if parties.plays(0) else 2)
        parties.net.rotate(torch.zeros(1, 1, dtype=torch.int64), +1, "another operation")

    with pytest.raises(ProtocolError, match="drifted apart"):
        run_apart(apart, 5)


def test_old_tickets_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    _, coins = fresh()
    first = [words(coins, ticket) for ticket in range(4)]
    assert words(coins, 1) == first[1]
    assert words(coins, 0) not in first


def test_a_choice_counts_as_progress_of_the_session() -> None:
    """An error after it ends a party's session: the next choice would differ from the others'."""
    with Session(seed=1) as session:
        before = session.coins.drawn
        session.coins.choice(1, "test")
        assert session.coins.drawn == before + 16
