"""How precise the functions of secrets are: measured over the whole range, on dense and adversarial inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from encml.mpc.functions.polynomial import Array
from encml.mpc.functions.softmax import softmax
from encml.mpc.functions.table import DIVIDE, FUNCTIONS, Function
from encml.mpc.parties import Parties
from encml.mpc.session import Session
from encml.mpc.sharing import open_to_all, public, share_from
from encml.ring.fixed import DEFAULT_FRACTION_BITS

F = DEFAULT_FRACTION_BITS
ULP = 2.0**-F
LARGEST = 2**46 - 1
"""The largest ring integer of a number that may be shared at 16 fraction bits."""
_ROWS = 10
_RELATIVE_FROM = 2.0**-3
_DENSE = 20_000
_CHUNK = 20_000


@dataclass(frozen=True, slots=True)
class Precision:
    """One function's errors and cost, at 16 fraction bits.

    worst_ulp, mean_ulp: of results below 1/8, in units of 2^-16. worst_relative: of the others.
    worst_of_bound: the worst error as a part of what is allowed, ``ulps`` units or ``relative`` of the result if that
    is more; worst_at: the argument there. bytes_per_party: an element, or a row of ten.
    """

    name: str
    inputs: int
    worst_ulp: float
    mean_ulp: float
    worst_relative: float
    worst_of_bound: float
    worst_at: tuple[float, ...]
    ulps: float
    relative: float
    rounds: int
    bytes_per_party: float
    outside: str


def known_functions() -> list[str]:
    """The names that ``measure`` takes."""
    return [*FUNCTIONS, "divide", "softmax"]


def measure(name: str) -> Precision:
    """The precision of a function of the table, of division, or of softmax over ten. Seconds on one core.

    Raises KeyError for a name that is none of them.
    """
    with Session() as session:
        if name == "softmax":
            return _softmax(session.parties)
        return _divide(session.parties) if name == "divide" else _function(session.parties, name)


def adversarial() -> Tensor:
    """Ring integers (n,) in (-2^46, 2^46): powers of two and their neighbours, the smallest numbers, the range's ends,
    where pieces and whole powers meet, and random ones, dense on the scale of exponents and around 0."""
    generator = torch.Generator().manual_seed(4)

    def uniform(count: int) -> Tensor:
        return torch.rand(count, dtype=torch.float64, generator=generator)

    powers = torch.tensor([2**k for k in range(46)])
    corners = torch.cat([powers, 3 * powers[:-2], torch.arange(0, 40 << F, 1 << (F - 2))])
    multiples = (torch.arange(-20, 31, dtype=torch.float64) * torch.log(torch.tensor(2.0)) * 2**F).long()
    corners = torch.cat([corners, multiples, torch.arange(300), torch.tensor([LARGEST])])
    dense = torch.cat([(2 ** (46 * uniform(_DENSE))).long(), (uniform(_DENSE) * (40 << F)).long()])
    positive = torch.cat([corners - 1, corners, corners + 1, dense])
    return torch.cat([positive, -positive]).clamp(-LARGEST, LARGEST)


def errors(found: Tensor, exact: Tensor, function: Function) -> Tensor:
    """Errors of ring integers against real numbers, as parts of what ``function`` allows."""
    off = (found.double() * ULP - exact).abs()
    return off / torch.clamp(exact.abs() * function.relative, min=function.ulps * ULP)


def within(function: Function, integers: Tensor) -> Tensor:
    """Those of the integers that are in a function's domain, and not 0 where that is a pole."""
    real = integers.double() * ULP
    low, high = function.domain
    kept = integers[(real >= low) & (real <= high)]
    return kept[torch.from_numpy(function.exact((kept.double() * ULP).numpy())).isfinite()]


def _function(parties: Parties, name: str) -> Precision:
    function = FUNCTIONS[name]
    x = within(function, adversarial())
    found = torch.cat([_run(parties, function, part) for part in torch.split(x, _CHUNK)])
    exact = torch.from_numpy(function.exact((x.double() * ULP).numpy()))
    return _judged(name, found, exact, function, x[None])


def _divide(parties: Parties) -> Precision:
    n = adversarial()
    x = n[torch.randperm(len(n), generator=torch.Generator().manual_seed(1))]
    x[x == 0] = 1
    fits = (n.double() / x.double()).abs() < 2.0**28
    pairs = torch.stack([n[fits], x[fits]])
    found = torch.cat([_run(parties, DIVIDE, part) for part in torch.split(pairs, _CHUNK, 1)])
    return _judged("divide", found, pairs[0].double() / pairs[1].double(), DIVIDE, pairs)


def _softmax(parties: Parties) -> Precision:
    """Rows of ten: close together, far apart, equal, and one above the others by halves."""
    generator = torch.Generator().manual_seed(7)
    scales = torch.tensor([0.01, 0.3, 1.0, 3.0, 10.0, 1000.0], dtype=torch.float64).repeat_interleave(1024)
    rows = torch.randn(_ROWS, len(scales), dtype=torch.float64, generator=generator) * scales
    steps = torch.zeros(_ROWS, 64, dtype=torch.float64)
    steps[0] = torch.arange(64) / 2
    x = (torch.cat([rows, steps], 1) * 2**F).round().long()
    with parties.ledger.measure() as spent:
        payload = softmax(parties, public(parties, x), F)
    rounds, sent = spent[0].rounds, spent[0].bytes / x.shape[1]
    function = Function(softmax, _identity, (0, 0), "", rounds, sent, relative=2**-12)
    exact = torch.softmax(x.double() * ULP, 0)
    return _judged("softmax", open_to_all(parties, payload).flatten(), exact.flatten(), function, x.flatten()[None])


def _identity(x: Array) -> Array:
    return x


def _run(parties: Parties, function: Function, x: Tensor) -> Tensor:
    """Ring integers of the function of shared ring integers."""
    payload = share_from(parties, 0, x, tuple(x.shape))
    return open_to_all(parties, function.protocol(parties, payload, F))


def _judged(name: str, found: Tensor, exact: Tensor, function: Function, x: Tensor) -> Precision:
    off = (found.double() * ULP - exact).abs()
    large = exact.abs() >= _RELATIVE_FROM
    parts = errors(found, exact, function)
    return Precision(
        name=name,
        inputs=len(found),
        worst_ulp=float(off[~large].max()) / ULP,
        mean_ulp=float(off[~large].mean()) / ULP,
        worst_relative=float((off / exact.abs())[large].max()),
        worst_of_bound=float(parts.max()),
        worst_at=tuple((x[:, parts.argmax()].double() * ULP).tolist()),
        ulps=function.ulps,
        relative=function.relative,
        rounds=function.rounds,
        bytes_per_party=function.bytes_per_party,
        outside=function.outside,
    )
