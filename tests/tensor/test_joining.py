"""Rows and columns of several parties: what comes together, what it costs, and what is refused, at every party."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from party_threads import run_apart
from reference import grid, near
from torch import Tensor

import encml
from encml import Session, SharedTensor
from encml.errors import InvalidTensor
from encml.mpc.parties import Parties
from encml.net.local import LocalTransport
from encml.tensor.shared import secret

SEED = 31
HEADERS = 2 * 8 * 12
"""Bytes a party sends to say what it brings."""
ORDER_ROUNDS, ORDER_BYTES = 19, 3000
IDS = ["ann", "bob", "cy", "dee"]


def measured(session: Session, f: Callable[[], Any]) -> tuple[Any, Any]:
    with session.ledger.measure() as spent:
        result = f()
    return result, spent[0]


@pytest.mark.parametrize(
    "sizes", [(2, 3, 4), (5, 0, 1), (None, 4, None), (None, 0, 2), (0, 0, 0), (1, None, 1)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8])
def test_rows_come_one_under_the_other(session: Session, sizes: tuple[int | None, ...], dtype: torch.dtype) -> None:
    parts = [None if n is None else (grid(n, 2, 3, seed=n) * 8).to(dtype) for n in sizes]
    x, spent = measured(session, lambda: encml.join_rows(parts))
    expected = torch.cat([part for part in parts if part is not None])
    assert isinstance(x, SharedTensor)
    assert x.dtype == (torch.int64 if dtype == torch.uint8 else dtype)
    assert x.is_leaf
    assert not x.requires_grad
    assert x.stride() == expected.stride()
    near(x.reveal(), expected, 0)
    assert spent.rounds == (2 if any(sizes) else 1)
    assert spent.sent == tuple(HEADERS + 8 * 6 * (n or 0) for n in sizes)


@pytest.mark.parametrize("sizes", [(1, 2, 3), (4, None, 1), (0, 3, 0), (None, None, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_columns_come_side_by_side(session: Session, sizes: tuple[int | None, ...], dtype: torch.dtype) -> None:
    parts = [None if d is None else (grid(4, d, seed=d) * 8).to(dtype) for d in sizes]
    x, spent = measured(session, lambda: encml.join_columns(parts))
    expected = torch.cat([part for part in parts if part is not None], 1)
    near(x.reveal(), expected, 0)
    assert x.stride() == expected.stride()
    assert spent.rounds == 2
    assert spent.sent == tuple(HEADERS + 8 * 4 * (d or 0) for d in sizes)


@given(st.lists(st.none() | st.integers(0, 4), min_size=3, max_size=3), st.integers(1, 3))
def test_joining_rows_is_concatenation(sizes: list[int | None], width: int) -> None:
    parts = [None if n is None else grid(n, width, seed=n) for n in sizes]
    present = [part for part in parts if part is not None]
    if present:
        near(encml.join_rows(parts).reveal(), torch.cat(present), 0)
        near(encml.join_columns([p if p is None else p.t() for p in parts]).reveal(), torch.cat(present).t(), 0)


def test_a_mapping_names_the_parties_that_bring_something(session: Session) -> None:
    near(
        encml.join_rows({2: grid(2, 3), 0: grid(1, 3, seed=1)}).reveal(), torch.cat([grid(1, 3, seed=1), grid(2, 3)]), 0
    )
    x = encml.join_columns({0: grid(4, 1), 1: grid(4, 2)}, ids={0: IDS, 1: IDS})
    near(x.reveal(), torch.cat([grid(4, 1), grid(4, 2)], 1), 0)


def test_a_part_that_is_a_view_or_needs_gradients_is_taken_as_it_is(session: Session) -> None:
    part = grid(6, 4).requires_grad_().t()[::2]
    x = encml.join_rows([part, None, part])
    assert not x.requires_grad
    near(x.reveal(), torch.cat([part, part]).detach(), 0)


def test_a_part_goes_to_one_party_and_masked() -> None:
    """The protocol is that of ``share``, of which tests/mpc/test_secrecy.py has more to say."""
    seen: list[tuple[int, int, Tensor]] = []

    def tap(source: int, destination: int, payload: Tensor, operation: str) -> None:
        if operation == "share":
            seen.append((source, destination, payload.clone()))

    for seed in (1, 2):
        with Session(LocalTransport(tap=tap), seed=seed):
            encml.join_rows([None, grid(50, 2), None])
    (one, two), integers = (message for _, _, message in seen), (grid(50, 2) * 2**16).long()
    assert {(source, destination) for source, destination, _ in seen} == {(1, 2)}
    assert not (one == two).any()
    assert not (one == integers).any()


# Ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        [IDS, list(IDS), tuple(IDS)],
        [[7, 11, 10**12, 0], torch.tensor([7, 11, 10**12, 0]), ["7", "11", "1000000000000", "0"]],
        [["ünïcode", "", "a,b", "x"], ["ünïcode", "", "a,b", "x"], None],
    ],
)
def test_equal_ids_line_up(session: Session, ids: list[Any]) -> None:
    parts = [grid(4, 2), grid(4, 1, seed=1), None]
    x, spent = measured(session, lambda: encml.join_columns(parts, ids=ids))
    near(x.reveal(), torch.cat([grid(4, 2), grid(4, 1, seed=1)], 1), 0)
    assert spent.rounds <= 2 + ORDER_ROUNDS
    assert spent.bytes_per_party - HEADERS - 8 * 12 / 3 <= ORDER_BYTES


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([IDS, IDS, IDS[::-1]], "party 0 and party 1 agree, those of party 0 and party 2 differ"),
        ([IDS, [*IDS[:3], "zoe"], None], "party 0 and party 1 differ"),
        # Where one id ends and the next begins matters, too.
        ([["ab", "c", "d", "e"], ["a", "bc", "d", "e"], None], "differ"),
        ([["1", "2", "3", "4"], ["01", "2", "3", "4"], None], "differ"),
    ],
)
def test_other_ids_or_another_order_are_refused(session: Session, ids: list[Any], told: str) -> None:
    with pytest.raises(InvalidTensor, match=f"the rows do not line up.*{told}") as error:
        encml.join_columns([grid(4, 1), grid(4, 1), None], ids=ids)
    assert not any(name in str(error.value) for name in ("ann", "zoe"))


@pytest.mark.parametrize("options", [{"fraction_bits": 24}, {"fraction_bits": 4}, {"comparison_bits": 20}], ids=str)
def test_ids_are_told_apart_in_any_range_of_numbers(options: dict[str, Any]) -> None:
    parts = [grid(4, 1) / 256, grid(4, 1) / 256, None]
    with Session(seed=SEED, **options):
        encml.join_columns(parts, ids=[IDS, IDS, None])
        for i in range(20):
            with pytest.raises(InvalidTensor, match="differ"):
                encml.join_columns(parts, ids=[IDS, [*IDS[:3], f"dee {i}"], None])


def test_what_is_opened_about_ids_is_whether_they_agree(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Tensor] = []
    reveal = SharedTensor.reveal
    monkeypatch.setattr(SharedTensor, "reveal", lambda x, to=None: opened.append(reveal(x, to)) or opened[-1])
    encml.join_columns([grid(4, 1), grid(4, 1), grid(4, 1)], ids=[IDS, IDS, IDS])
    assert [part.tolist() for part in opened] == [[True] * 3]


# What is refused -------------------------------------------------------------------------------------------------

Join = Callable[..., SharedTensor]
REFUSED: list[tuple[Join, Any, Any, str]] = [
    (encml.join_rows, [grid(2, 3), None, grid(1, 4)], None, r"float64 \(2, 3\), party 1 none, party 2 .* \(1, 4\)"),
    (encml.join_rows, [grid(2, 3), grid(2, 3).float(), None], None, r"float64 \(2, 3\), party 1 float32 \(2, 3\)"),
    (encml.join_rows, [grid(2, 3), grid(2), None], None, r"party 1 float64 \(2,\)"),
    (encml.join_columns, [grid(2, 3), grid(3, 3), None], None, r"but for the number of columns"),
    (encml.join_columns, [grid(2), None, None], None, "party 0: expected 2 to 8 dimensions"),
    (encml.join_rows, [None, torch.tensor(1.0), None], None, "party 1: expected 1 to 8 dimensions"),
    (encml.join_rows, [None, None, grid(*(1,) * 9)], None, "party 2: expected 1 to 8 dimensions"),
    (encml.join_rows, [None, None, None], None, "no party brings anything"),
    (encml.join_rows, [None, [[1.0]], None], None, "party 1: expected a plain torch.Tensor or None, found a list"),
    (encml.join_rows, [None, torch.tensor([float("nan")]), None], None, "party 1: .* NaN"),
    (encml.join_rows, [None, torch.tensor([2.0**31]), None], None, "party 1: .* beyond the fixed-point range"),
    (encml.join_rows, [None, torch.zeros(2, dtype=torch.complex64), None], None, "party 1: .*complex64"),
    (encml.join_columns, [grid(2, 1), grid(2, 1), None], [["a", "b"], None, None], "only party 0 gave ids"),
    (encml.join_columns, [grid(2, 1), None, None], [["a"], None, None], "an id for each of 2 rows, found 1 ids"),
    (encml.join_columns, [grid(2, 1), None, None], [["a", "b"], ["a"], None], "as many ids as .* party 1 1"),
    (encml.join_columns, [grid(2, 1), None, None], ["ab", None, None], "party 0: ids: .* found a str"),
    (encml.join_columns, [grid(2, 1), None, None], [[1.0, 2.0], None, None], "found a float among them"),
    (encml.join_columns, [grid(2, 1), None, None], [grid(2), None, None], "whole numbers of shape"),
]  # fmt: skip


@pytest.mark.parametrize(("join", "parts", "ids", "told"), REFUSED)
def test_every_party_hears_what_does_not_fit_and_goes_on(join: Join, parts: Any, ids: Any, told: str) -> None:
    """In one process and apart, where no party may be left waiting and the session stays usable."""
    options: dict[str, Any] = {} if ids is None else {"ids": ids}
    with pytest.raises(InvalidTensor, match=told) as alone:
        join(parts, **options)

    def apart(parties: Parties) -> tuple[str, Tensor]:
        (rank,) = parties.local
        own = {} if ids is None else {"ids": ids[rank]}
        with Session(parties.net, seed=SEED):
            with pytest.raises(InvalidTensor) as error:
                join(parts[rank], **own)
            return str(error.value), encml.join_rows(grid(1, 2, seed=rank)).reveal()

    results, _ = run_apart(apart, SEED)
    for rank, (message, after) in enumerate(results):
        if message != str(alone.value):
            assert f"party {rank}" not in message
            assert "has a part that cannot be shared" in message
        near(after, torch.cat([grid(1, 2, seed=i) for i in range(3)]), 0)
    assert any(message == str(alone.value) for message, _ in results)


@pytest.mark.parametrize("given", [grid(2, 3), None, [grid(2, 3)] * 2, "abc"])
def test_in_one_process_every_party_is_given_something(given: Any) -> None:
    with pytest.raises(InvalidTensor, match="give a list of 3, one part"):
        encml.join_rows(given)


def test_other_parties_parts_are_refused() -> None:
    def apart(parties: Parties) -> None:
        (rank,) = parties.local
        with Session(parties.net, seed=SEED):
            if rank == 1:
                with pytest.raises(InvalidTensor, match=r"each of \[0, 1\], in a process with the parties \[1\]"):
                    encml.join_rows({0: grid(2, 2), 1: grid(2, 2)})

    run_apart(apart, SEED)
    with pytest.raises(InvalidTensor, match="in a process with the parties"):
        encml.join_rows({3: grid(2, 2)})


# Real parties ----------------------------------------------------------------------------------------------------


def joins(give: Callable[[list[Any]], Any]) -> list[SharedTensor]:
    """Each kind of joining; ``give`` chooses among the three parties' parts."""
    return [
        encml.join_rows(give([grid(3, 2), None, grid(2, 2, seed=1)])),
        encml.join_rows(give([None, torch.arange(4), None])),
        encml.join_columns(give([grid(4, 2), grid(4, 1), grid(4, 3)]), ids=give([IDS, IDS, IDS])),
        encml.join_columns(give([None, grid(4, 1), grid(4, 3)]), ids=give([IDS, IDS, IDS])),
    ]


@pytest.mark.parametrize("form", ["own", "mapping"])
def test_three_parties_hold_the_shares_that_one_process_gives(form: str) -> None:
    def apart(parties: Parties) -> list[Tensor]:
        (rank,) = parties.local

        def give(parts: list[Any]) -> Any:
            return parts[rank] if form == "own" else {r: parts[r] for r in parties.local}

        with Session(parties.net, seed=SEED):
            return [secret(x).terms.clone() for x in joins(give)]

    with Session(seed=SEED) as session:
        together = [secret(x).terms for x in joins(lambda parts: parts)]
        results, transports = run_apart(apart, SEED)
        for rank, found in enumerate(results):
            for terms, expected in zip(found, together, strict=True):
                assert torch.equal(terms, expected[[rank, (rank + 1) % 3]])
            assert transports[rank].ledger.total.sent[rank] == session.ledger.total.sent[rank] + 16
            assert transports[rank].ledger.rounds == session.ledger.rounds + 1
