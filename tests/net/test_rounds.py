"""Independent protocols share rounds: the same results and bytes, as many rounds as the longest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encml.mpc.comparison import negative, to_arithmetic
from encml.mpc.multiplication import product
from encml.mpc.parties import Parties
from encml.mpc.sharing import open_to_all, share_from
from encml.mpc.truncation import truncate
from encml.net.local import LocalTransport


def parties_and_secret() -> tuple[Parties, Tensor]:
    parties = Parties(LocalTransport(), seed=3)
    return parties, share_from(parties, 0, torch.tensor([-5, 0, 7 << 20]), (3,))


def sign(parties: Parties, x: Tensor) -> Tensor:
    return open_to_all(parties, to_arithmetic(parties, negative(parties, x)))


def test_as_many_rounds_as_the_longest_and_all_the_bytes() -> None:
    parties, x = parties_and_secret()
    jobs = [
        lambda: sign(parties, x),
        lambda: open_to_all(parties, parties.reshare(product(parties, torch.mul, x, x), "square")),
        lambda: open_to_all(parties, truncate(parties, x, 4)),
        lambda: "nothing to say",
    ]
    costs = []
    for job in jobs:
        with parties.ledger.measure() as spent:
            job()
        costs += spent
    with parties.ledger.measure() as spent:
        negatives, squares, shifted, words = parties.together(*jobs)
    assert negatives.tolist() == [1, 0, 0]
    assert squares.tolist() == [25, 0, 49 << 40]
    assert shifted.tolist() in ([-1, 0, 7 << 16], [0, 0, 7 << 16])
    assert words == "nothing to say"
    assert spent[0].rounds == max(cost.rounds for cost in costs) == 11
    assert spent[0].bytes == sum(cost.bytes for cost in costs)


def test_nested() -> None:
    parties, x = parties_and_secret()
    with parties.ledger.measure() as spent:
        (a, b), c = parties.together(
            lambda: parties.together(lambda: sign(parties, x), lambda: open_to_all(parties, x)),
            lambda: sign(parties, -x),
        )
    assert a.tolist() == [1, 0, 0]
    assert b.tolist() == [-5, 0, 7 << 20]
    assert c.tolist() == [0, 0, 1]
    assert spent[0].rounds == 11


def test_one_protocol_and_none() -> None:
    parties, x = parties_and_secret()
    assert parties.together() == []
    assert parties.together(lambda: open_to_all(parties, x))[0].tolist() == [-5, 0, 7 << 20]


def test_an_error_ends_all_and_the_parties_can_go_on() -> None:
    parties, x = parties_and_secret()
    ended = []

    def watched() -> None:
        try:
            sign(parties, x)
        finally:
            ended.append(True)

    def failing() -> None:
        open_to_all(parties, x)
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        parties.together(watched, failing, lambda: sign(parties, x))
    assert ended == [True]
    assert not parties.net._jobs
    assert sign(parties, x).tolist() == [1, 0, 0]
