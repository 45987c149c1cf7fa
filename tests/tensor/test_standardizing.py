"""Columns of mean 0 and deviation 1, on shares or by statistics that are opened: precision, cost, what is opened."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from party_threads import run_apart
from reference import F, grid, near
from torch import Tensor

import encml
from encml import Session
from encml.errors import InvalidTensor
from encml.mpc.parties import Parties
from encml.net.local import LocalTransport

SEED = 5
PLACE = torch.tensor([0.0, 3000.0, -0.5, 40.0, 0.0, 7.0], dtype=torch.float64)
SPREAD = torch.tensor([1.0, 80.0, 0.01, 200.0, 0.0, 2.0**-8], dtype=torch.float64)
"""The columns' means and deviations; one column does not vary."""


def rows(n: int, seed: int) -> Tensor:
    """On the grid of fixed point, so that sharing is exact."""
    drawn = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.round((drawn * SPREAD + PLACE) * 2**F) / 2**F


def expected(x: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Standardised rows and what they may be off by, as the docstring says."""
    deviation = (like.var(0, correction=0) + 2.0**-27).sqrt()
    result = (x - like.mean(0)) / deviation
    return result, 2.0**-12 * result.abs() + 2.0 ** -(F + 2) / deviation + 2.0**-F


@pytest.mark.parametrize("n", [16, 64, 300, 1500])
def test_secret_statistics(session: Session, n: int) -> None:
    plain, test = rows(n, 1), rows(50, 2)
    x, other = encml.share(plain), encml.share(test)
    with session.ledger.measure() as first:
        found = encml.standardize(x)
    with session.ledger.measure() as second:
        found_other = encml.standardize(other, like=x)
    for z, (values, bound) in ((found, expected(plain, plain)), (found_other, expected(test, plain))):
        assert z.is_leaf
        assert z.dtype == torch.float64
        assert bool(((z.reveal() - values).abs() <= bound).all())
    assert first[0].rounds <= 37
    assert second[0].rounds == 3
    assert second[0].bytes_per_party <= 9.5 * 50 * 6
    assert first[0].bytes_per_party <= 9.5 * n * 6 + 3000 + 200 * 6


def test_statistics_are_found_anew_after_a_write(session: Session) -> None:
    plain = grid(20, 2)
    x = encml.share(plain)
    encml.standardize(x)
    x.mul_(2).add_(1)
    values, _ = expected(plain * 2 + 1, plain * 2 + 1)
    near(encml.standardize(x).reveal(), values, 30)


def test_more_dimensions_and_products_that_are_pending(session: Session) -> None:
    plain = grid(40, 2, 3)
    x = encml.share(plain) * encml.share(torch.tensor(1.5))
    near(encml.standardize(x).reveal(), expected(plain * 1.5, plain * 1.5)[0], 40)


def test_nothing_is_opened_by_standardizing() -> None:
    named: set[str] = set()
    with Session(LocalTransport(tap=lambda source, to, payload, operation: named.add(operation)), seed=1):
        x = encml.share(grid(8, 2))
        encml.standardize(x)
    assert not any("reveal" in name or "open" in name for name in named)
    assert named


@pytest.mark.parametrize(
    ("x", "like"), [(grid(3, 2), grid(3, 4)), (grid(3, 2), grid(0, 2)), (torch.tensor(1.0), torch.tensor(1.0))]
)
def test_rows_that_do_not_fit_are_refused(session: Session, x: Tensor, like: Tensor) -> None:
    with pytest.raises(InvalidTensor, match="standardize: found rows of shape"):
        encml.standardize(encml.share(x), like=encml.share(like))


def test_rows_of_another_session_are_refused(session: Session) -> None:
    x = encml.share(grid(3, 2))
    with Session(seed=2), pytest.raises(InvalidTensor, match="2 sessions"):
        encml.standardize(encml.share(grid(3, 2)), like=x)


# Public statistics -----------------------------------------------------------------------------------------------

LARGE = torch.tensor([1e3, 1e-3, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
"""Units that shares at 16 bits could not hold."""


@pytest.mark.parametrize("sizes", [(200, 31, 7), (None, 12, 1), (5, 0, None)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_public_statistics(session: Session, sizes: tuple[int | None, ...], dtype: torch.dtype) -> None:
    parts = [None if n is None else (rows(n, n) * LARGE).to(dtype) for n in sizes]
    with session.ledger.measure() as spent:
        mean, deviation = encml.reveal_statistics(parts)
    whole = torch.cat([part.double() for part in parts if part is not None])
    result = dtype if dtype.is_floating_point else torch.float32
    assert (mean.dtype, deviation.dtype) == (result, result)
    torch.testing.assert_close(mean.double(), whole.mean(0), rtol=1e-6, atol=2.0**-31)
    variance = whole.var(0, correction=0)
    exact = torch.where(variance < 2.0**-30, 1.0, variance).sqrt()
    torch.testing.assert_close(deviation.double(), exact, rtol=1e-6, atol=2.0**-31 / float(exact.min()))
    assert float(deviation[4]) == 1
    assert spent[0].rounds == 3
    assert spent[0].sent == (224 + 32 * 6,) * 3


def test_a_sum_is_opened_and_no_term_of_it() -> None:
    """Party 0's and party 1's terms reach party 2 under masks that it lacks, fresh in every session."""
    seen: list[list[Tensor]] = []

    def tap(source: int, to: int, payload: Tensor, operation: str) -> None:
        if to == 2 and payload.shape == (2,):
            seen[-1].append(payload.clone())

    parts = [torch.tensor([[1.0], [5.0]]), torch.tensor([[3.0]]), None]
    for seed in (1, 2):
        seen.append([])
        with Session(LocalTransport(tap=tap), seed=seed):
            mean, _ = encml.reveal_statistics(parts)
        assert float(mean) == 3
    terms = [round(number * 2**32 / 3) for number in (6, 3, 8, 0)]
    assert [len(messages) for messages in seen] == [4, 4]
    assert not any(int(message[0]) in terms for messages in seen for message in messages)
    assert not any(bool((a == b).any()) for a, b in zip(*seen, strict=True))


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([grid(2, 3), grid(2, 2), None], "do not fit together"),
        ([None, grid(0, 3), None], "1 parties bring 0 rows"),
        ([None, None, None], "no party brings anything"),
        ([None, torch.tensor([[2.0**29 + 2]]), None], "a mean beyond 2"),
        ([torch.tensor([[2.0**15]]), torch.tensor([[-(2.0**15)]]), None], "a variance beyond 2"),
        ([None, torch.tensor([[float("inf")]]), None], "party 1"),
    ],
)
def test_every_party_hears_why_there_are_no_statistics(parts: list[Any], told: str) -> None:
    with pytest.raises(InvalidTensor, match=told):
        encml.reveal_statistics(parts)

    def apart(parties: Parties) -> None:
        with Session(parties.net, seed=SEED):
            with pytest.raises(InvalidTensor, match=told):
                encml.reveal_statistics(parts[parties.local[0]])
            near(encml.join_rows(grid(1, 2)).reveal(), grid(1, 2).expand(3, 2), 0)

    run_apart(apart, SEED)


def test_parties_apart_find_the_same(session: Session) -> None:
    parts = [rows(10, 1), None, rows(4, 2)]

    def apart(parties: Parties) -> tuple[Tensor, Tensor, Tensor]:
        with Session(parties.net, seed=SEED):
            mine = parts[parties.local[0]]
            x = encml.join_rows(mine)
            return *encml.reveal_statistics(mine), encml.standardize(x).reveal()

    results, _ = run_apart(apart, SEED)
    with Session(seed=SEED):
        x = encml.join_rows(parts)
        together = *encml.reveal_statistics(parts), encml.standardize(x).reveal()
    for found in results:
        for a, b in zip(found, together, strict=True):
            assert torch.equal(a, b)
