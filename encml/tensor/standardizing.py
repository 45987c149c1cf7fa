"""Mean 0 and deviation 1 for the columns of rows that several parties bring, without showing the rows.

Two ways, and what each reveals:

* ``standardize`` works on shares: nothing is revealed;
* ``reveal_statistics`` opens the mean and the deviation of every column over all rows to all parties, who then
  standardise their own rows before they share them: cheaper, exact whatever the units, and public.
"""

from __future__ import annotations

import torch
from torch import Tensor

from encml.errors import InvalidTensor
from encml.mpc.session import Session, current_session
from encml.tensor.handlers.common import wrap
from encml.tensor.handlers.moments import LEAST_SQUARE, cut, moments, plus, times
from encml.tensor.joining import Parts, agree, of_parties, prepare
from encml.tensor.secret import Secret, settle_all
from encml.tensor.shared import SharedTensor, secret

_STATISTICS = "mean and inverse deviation of the rows"
_OPENED_BITS = 32
_OPENED_LIMIT = 2.0**29
_CONSTANT = 2.0**-30
"""Below this variance a column counts as constant: what 32 fraction bits cannot tell from it."""


def standardize(x: SharedTensor, like: SharedTensor | None = None) -> SharedTensor:
    """Each column of x less a mean and divided by a standard deviation, both secret and taken over ``like``'s rows.

    x: (n, *rest), as ``encml.join_rows`` gives it. like: (m, *rest); default: x itself. Test rows are standardised as
    training rows were: ``standardize(test, like=train)``; what was found of ``like`` is kept with it.

    Nothing is revealed. The deviation is the root of the mean square (divided by m, not m - 1) plus 2^-27, so columns
    that do not vary become about 0. The result is a leaf: gradients do not flow back to x.

    Up to 37 rounds, 9.4 B a party and element, 3 kB and 0.2 kB a column; 3 rounds and 9.4 B an element where the
    statistics of ``like`` are known already. Off by less than 2^-12 of itself and 2^-(f+2) / deviation.
    Bounds: |mean| < 2^12, deviation < 2^8, m * variance < 2^(62 - 2f), which is 2^30 at f = 16, and results below 2^14:
    scale columns in other units by a public number first.
    Raises InvalidTensor for shapes that do not fit, or without rows.
    """
    like = x if like is None else like
    if not x.ndim or x.shape[1:] != like.shape[1:] or not len(like):
        raise InvalidTensor(
            f"standardize: found rows of shape {tuple(x.shape)} and statistics of rows of shape {tuple(like.shape)}; "
            "expected (n, ...) and at least one row with as many columns"
        )
    if x.session is not like.session:
        raise InvalidTensor("standardize: the rows belong to 2 sessions; share them in one")
    session, held, rows = x.session, secret(like), secret(x)
    with session.whole(), session.ledger.operation("standardize"):
        settle_all(held, rows)
        statistics: tuple[Secret, Secret] | None = held.fact(_STATISTICS)
        if statistics is None:
            found = moments(held, [1], LEAST_SQUARE)
            assert found.mean is not None
            statistics = found.mean, found.deviation()
            held.keep(_STATISTICS, statistics)
        mean, inverse = statistics
        return wrap(cut(times(plus(rows, mean, -1), inverse), session.fraction_bits), x.dtype)


def reveal_statistics(parts: Parts, *, session: Session | None = None) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of every column over all parties' rows, (*rest) each: public.

    parts: plain rows (n_r, *rest), as for ``encml.join_rows``. Standardise with them before sharing:

        mean, deviation = encml.reveal_statistics(mine)
        x = encml.join_rows((mine - mean) / deviation)

    Revealed, to every party: the two results and what ``join_rows`` makes public. A party that takes its own rows out
    of a mean knows that of the other two parties' rows together: think of ``standardize`` where these are few.

    The deviation is that of the population, and 1 for columns that do not vary: below 2^-15. Both results are rounded
    to 2^-32 before the root; they have the rows' dtype, the default one if that is of whole numbers. 3 rounds; 224
    bytes a party and 32 a column. Raises InvalidTensor as ``join_rows``, and for columns with a mean or variance beyond
    2^29.
    """
    name = "reveal_statistics"
    session = session or current_session()
    own: dict[int, Tensor | None] = of_parties(session, parts, name, "part")
    brought = agree(session, name, 0, {r: prepare(name, 0, part, None, session) for r, part in own.items()})
    found = [part for part in brought if part.dtype is not None]
    total, rest, dtype = sum(part.shape[0] for part in found), found[0].shape[1:], found[0].dtype
    if not total:
        raise InvalidTensor(f"{name}: {len(found)} parties bring 0 rows")
    rows = [torch.zeros(0, *rest) if part is None else part.detach().double() for part in own.values()]
    mean = _open_sum(session, name, "mean", torch.stack([part.sum(0) / total for part in rows]))
    squares = torch.stack([(part - mean).square().sum(0) / total for part in rows])
    variance = _open_sum(session, name, "variance", squares)
    deviation = torch.where(variance < _CONSTANT, 1.0, variance).sqrt()
    to = dtype if dtype is not None and dtype.is_floating_point else torch.get_default_dtype()
    return mean.to(to), deviation.to(to)


def _open_sum(session: Session, name: str, what: str, terms: Tensor) -> Tensor:
    """The sum (*rest) of terms (P, *rest), one a party that lives here. 1 round, 16 B a party and element and 16 more.

    A party whose term is out of range counts itself in one element more.
    """
    fit = (terms.abs() < _OPENED_LIMIT).flatten(1).all(1, keepdim=True)
    integers = torch.round(terms.flatten(1).where(fit, 0.0) * 2.0**_OPENED_BITS).to(torch.int64)
    with session.whole(), session.ledger.operation(name):
        opened = session.parties.open_rows(torch.cat([integers, (~fit).to(torch.int64)], 1), name)
    if int(opened[-1]):
        raise InvalidTensor(f"{name}: a column has a {what} beyond 2^29: scale the data, by a number that is public")
    return (opened[:-1].double() * 2.0**-_OPENED_BITS).view(terms.shape[1:])
