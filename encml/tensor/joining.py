"""Who owns what: rows or columns that different parties bring become one secret table.

    x = encml.join_rows(mine)                        in a real party's process: its own rows, or None
    x = encml.join_rows([of_0, of_1, of_2])          in the in-process session: those of all three
    x = encml.join_rows({r: read(r) for r in session.parties.local})        the same program for both

Every party first tells the others what it brings: shapes and dtypes, which are public. Where these do not fit together
every party raises the same error, and the session goes on. Then all parties share their parts in one round.

Vertical data, the columns of the same people at different parties, must be in the same order everywhere. With ``ids``
the parties make sure of that on shares. Finding out which people they have in common (private set intersection) is not
done here: whoever joins columns has agreed on that before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encml.errors import InvalidTensor
from encml.mpc.session import Session, current_session
from encml.mpc.sharing import share_from
from encml.net.transport import PARTIES, Message
from encml.tensor.api import logical_dtype, reveal
from encml.tensor.public import term
from encml.tensor.secret import Secret
from encml.tensor.shared import SharedTensor

Part = Tensor | None
"""What one party brings: a plain tensor, or nothing."""
Parts = Part | Sequence[Part] | Mapping[int, Part]
Ids = Iterable[str | int] | Tensor
"""One party's ids, a row each: strings, whole numbers, or an integer tensor (n,)."""
AllIds = Ids | Sequence[Ids | None] | Mapping[int, Ids | None] | None

MAX_DIMS = 8
_WORDS = 4 + MAX_DIMS
_DIGEST_BYTES = 16
_DTYPES = (torch.float32, torch.float64, torch.int64, torch.bool)


def join_rows(parts: Parts, *, session: Session | None = None) -> SharedTensor:
    """Every party's rows under one another, party 0's first: one secret tensor of shape (n0 + n1 + n2, *rest).

    parts: in a real party's process its own tensor (n_r, *rest), or None if it brings no rows; in the in-process
        session a list of three such. Or, in either, a mapping from the ranks that live in this process. Labels of one
        party alone are joined as well: ``join_rows(y if rank == 0 else None)``.
    session: whose parties hold the shares; default: the current session.

    Public: how many rows each party brings, the rest of the shape, the dtype. Everything else stays secret. Returns a
    leaf SharedTensor without requires_grad, of the logical dtype that ``encml.share`` would give.

    2 rounds; 192 bytes a party, and in the second round 8 bytes an element in all, sent by its owner. Raises
    InvalidTensor, at every party, if the shapes or dtypes do not fit together, or where one party's part cannot be
    shared: its own error says why, the others' that it is so.
    """
    return _join("join_rows", 0, parts, None, session or current_session())


def join_columns(parts: Parts, *, ids: AllIds = None, session: Session | None = None) -> SharedTensor:
    """Every party's columns side by side, party 0's first: one secret tensor (n, d0 + d1 + d2, *rest).

    The parties have the same n people, in the same order.

    parts: as for ``join_rows``, (n, d_r, *rest) each, or None from a party without columns.
    ids: whom the rows are about, to make sure of that order: a party's own n ids, or three lists of them in the
        in-process session, or a mapping. Whoever brings columns brings ids then; a party with labels alone may, too.
    session: whose parties hold the shares; default: the current session.

    Public: n, the number of columns of each party, the dtype; with ids whether those of each two parties agree as a
    whole, not where they differ. Values and ids stay secret. Returns as ``join_rows``.

    2 rounds, 192 bytes a party and 8 bytes an element in all, as ``join_rows``; 19 rounds and some 3 kB a party more
    for ids. Raises as ``join_rows``, and if the ids do not line up.
    """
    return _join("join_columns", 1, parts, ids, session or current_session())


def _join(name: str, dim: int, parts: Parts, ids: AllIds, session: Session) -> SharedTensor:
    own = of_parties(session, parts, name, "part")
    own_ids: Mapping[int, Ids | None] = {} if ids is None else of_parties(session, ids, name, "list of ids")
    prepared = {rank: prepare(name, dim, part, own_ids.get(rank), session) for rank, part in own.items()}
    brought = agree(session, name, dim, prepared)
    _check_order(session, name, prepared, [rank for rank, found in enumerate(brought) if found.ids is not None])
    known = {rank: part.integers for rank, part in prepared.items()}
    with session.whole(), session.ledger.operation(name):
        payloads = _shared_by(session, {r: found.shape for r, found in enumerate(brought) if found.dtype}, known)
    dtype = next(found.dtype for found in brought if found.dtype is not None)
    bits = session.fraction_bits if dtype.is_floating_point else 0
    return SharedTensor(Secret(session, bits, payload=torch.cat(payloads, dim + 1)), dtype)


def _shared_by(
    session: Session, shapes: Mapping[int, tuple[int, ...]], known: Mapping[int, Tensor | None]
) -> list[Tensor]:
    """What each rank of ``shapes`` shares, where it is ``known``, as payloads in that order; all in one round."""
    jobs = {
        rank: partial(share_from, session.parties, rank, known.get(rank), shape)
        for rank, shape in shapes.items()
        if 0 not in shape
    }
    made = dict(zip(jobs, session.parties.together(*jobs.values()), strict=True))
    empty = partial(torch.zeros, dtype=torch.int64, device=session.device)
    return [made[r] if r in made else empty((session.parties.shares_here, *s)) for r, s in shapes.items()]


# What each party brings ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Brought:
    """What a party says about its part, all of it public. dtype None: it brings none; ids: how many, None if none."""

    fit: bool = True
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] = ()
    ids: int | None = None

    def __str__(self) -> str:
        return "none" if self.dtype is None else f"{self.dtype} {self.shape}".removeprefix("torch.")

    def words(self) -> Tensor:
        """As it is sent: int64 of a fixed length."""
        dtype = -1 if self.dtype is None else _DTYPES.index(self.dtype)
        words = [int(self.fit), dtype, -1 if self.ids is None else self.ids, len(self.shape), *self.shape]
        return torch.tensor(words + [0] * (_WORDS - len(words)))

    @classmethod
    def read(cls, words: Tensor) -> Brought:
        """What was sent."""
        fit, dtype, ids, ndim, *sizes = words.tolist()
        return cls(bool(fit), None if dtype < 0 else _DTYPES[dtype], tuple(sizes[:ndim]), None if ids < 0 else ids)


@dataclass(frozen=True, slots=True, repr=False)
class Prepared:
    """A part that is known in this process, ready to be shared: ring integers, and a digest (bytes,) of the ids.

    error: why it cannot be shared.
    """

    brought: Brought
    integers: Tensor | None = None
    digest: Tensor | None = None
    error: str = ""


def of_parties(session: Session, given: object, name: str, what: str) -> dict[int, Any]:
    """What was given for each party that lives in this process, by rank; the forms are those of ``join_rows``."""
    local = session.parties.local
    if isinstance(given, Mapping):
        if not set(given) <= set(local):
            raise InvalidTensor(
                f"{name}: found a {what} for each of {sorted(given)}, in a process with the parties {list(local)}: "
                "each party brings its own alone"
            )
        return {rank: given.get(rank) for rank in local}
    if len(local) < PARTIES:
        return {local[0]: given}
    if not isinstance(given, list | tuple) or len(given) != PARTIES:
        found = f"a {type(given).__name__}" + (f" of {len(given)}" if isinstance(given, list | tuple) else "")
        raise InvalidTensor(
            f"{name}: found {found}; in the in-process session, where all parties live, give a list of {PARTIES}, one "
            f"{what} (or None) a party, or a mapping from their ranks"
        )
    return dict(enumerate(given))


def prepare(name: str, dim: int, part: Part, ids: Ids | None, session: Session) -> Prepared:
    """A part as ring integers. What is wrong with it is only noted: the other parties need to hear of it first."""
    try:
        names = None if ids is None else _checked_ids(ids)
        count = None if names is None else len(names)
        digest = None if names is None else _digest(names)
        if part is None:
            return Prepared(Brought(ids=count), digest=digest)
        if not isinstance(part, Tensor) or isinstance(part, SharedTensor):
            raise InvalidTensor(f"expected a plain torch.Tensor or None, found a {type(part).__name__}")
        shape = tuple(part.shape)
        if not dim < part.ndim <= MAX_DIMS:
            raise InvalidTensor(f"expected {dim + 1} to {MAX_DIMS} dimensions, found the shape {shape}")
        if count not in (None, shape[0]):
            raise InvalidTensor(f"expected an id for each of {shape[0]} rows, found {count} ids")
        integers = term(part.detach(), session.fraction_bits)[0]
        return Prepared(Brought(dtype=logical_dtype(part), shape=shape, ids=count), integers, digest)
    except InvalidTensor as error:
        return Prepared(Brought(fit=False), error=str(error))


def agree(session: Session, name: str, dim: int, prepared: Mapping[int, Prepared]) -> list[Brought]:
    """Tell the others what this process brings, and hear what they do; by rank.

    1 round, 192 bytes a party. Raises InvalidTensor, at every party, where they do not fit together along ``dim``.
    """
    pairs = [(source, to) for source in range(PARTIES) for to in range(PARTIES) if source != to]
    words = {rank: part.brought.words() for rank, part in prepared.items()}
    with session.whole(), session.ledger.operation(name):
        messages = [Message(source, to, words.get(source), (_WORDS,), torch.int64) for source, to in pairs]
        received = session.parties.net.exchange(messages, name)
    for (source, _), arrived in zip(pairs, received, strict=True):
        if arrived is not None:
            words[source] = arrived
    brought = [Brought.read(words[rank]) for rank in range(PARTIES)]
    _check_fit(name, dim, brought, prepared)
    return brought


def _check_fit(name: str, dim: int, brought: Sequence[Brought], prepared: Mapping[int, Prepared]) -> None:
    for rank, found in enumerate(brought):
        if not found.fit and rank in prepared:
            raise InvalidTensor(f"{name}, party {rank}: {prepared[rank].error}")
    for rank, found in enumerate(brought):
        if not found.fit:
            raise InvalidTensor(f"{name}: party {rank} has a part that cannot be shared; its own error says why")
    parts = [found for found in brought if found.dtype is not None]
    if not parts:
        raise InvalidTensor(f"{name}: no party brings anything")
    rests = {(found.dtype, len(found.shape), found.shape[:dim], found.shape[dim + 1 :]) for found in parts}
    if len(rests) > 1:
        raise InvalidTensor(
            f"{name}: the parts do not fit together: {_listed(brought)}; expected one dtype and one shape, but for the "
            f"number of {'columns' if dim else 'rows'}"
        )
    counts = {found.ids for found in brought if found.ids is not None}
    if counts and any(found.ids is None for found in parts):
        bringing = [str(rank) for rank, found in enumerate(brought) if found.ids is not None]
        raise InvalidTensor(
            f"{name}: only party {' and '.join(bringing)} gave ids ({_listed(brought)}): expected them of every party "
            "that brings columns, or of none"
        )
    if counts and counts != {parts[0].shape[0]}:
        listed = ", ".join(f"party {rank} {found.ids}" for rank, found in enumerate(brought) if found.ids is not None)
        raise InvalidTensor(f"{name}: the rows do not line up: {parts[0].shape[0]} rows, and as many ids as {listed}")


def _listed(brought: Sequence[Brought]) -> str:
    return ", ".join(f"party {rank} {found}" for rank, found in enumerate(brought))


# Whom the rows are about -----------------------------------------------------------------------------------------


def _checked_ids(ids: Ids) -> list[str]:
    """Ids as text, as which whole numbers are compared, too."""
    if isinstance(ids, Tensor):
        if ids.ndim != 1 or ids.is_floating_point():
            raise InvalidTensor(f"ids: expected whole numbers of shape (n,), found {ids.dtype} {tuple(ids.shape)}")
        return [str(number) for number in ids.tolist()]
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise InvalidTensor(f"ids: expected a list of them, one a row, found a {type(ids).__name__}")
    names = list(ids)
    for name in names:
        if not isinstance(name, str | int | np.integer):
            raise InvalidTensor(f"ids: expected strings or whole numbers, found a {type(name).__name__} among them")
    return [str(name) for name in names]


def _digest(names: Sequence[str]) -> Tensor:
    """int64, a byte each, which any declared range of comparisons holds. No key: it is only ever seen as shares."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name in names:
        text = name.encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return torch.tensor(list(digest.digest()))


def _check_order(session: Session, name: str, prepared: Mapping[int, Prepared], owners: Sequence[int]) -> None:
    """Whether digests of the ids are equal, on shares: a digest whose key its receiver knew would let it try ids."""
    pairs = list(combinations(range(len(owners)), 2))
    if not pairs:
        return
    with session.whole(), session.ledger.operation(name):
        known = {rank: part.digest for rank, part in prepared.items()}
        payloads = _shared_by(session, dict.fromkeys(owners, (_DIGEST_BYTES,)), known)
        shared = SharedTensor(Secret(session, 0, payload=torch.stack(payloads, 1)), torch.int64)
        equal: Any = shared[[a for a, _ in pairs]] == shared[[b for _, b in pairs]]
        same = reveal(equal.all(1))
    if bool(same.all()):
        return
    told = [
        f"those of party {owners[a]} and party {owners[b]} {'agree' if alike else 'differ'}"
        for (a, b), alike in zip(pairs, same.tolist(), strict=True)
    ]
    raise InvalidTensor(
        f"{name}: the rows do not line up, by their ids: {', '.join(told)}; bring the same people in the same order "
        "to every party, for example those that all of them have, sorted by id"
    )
