"""Functions of secrets over the whole range: errors on dense and adversarial inputs, costs, and what lies beyond."""

from __future__ import annotations

import math
from functools import partial
from operator import mul

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from party_threads import run_apart
from plain_ring import in_process, opened, random_ring, split
from torch import Tensor

from encml.coverage.functions import adversarial, errors
from encml.mpc.functions import curves, exponential, inverse
from encml.mpc.functions.exponent import Groups, exponents
from encml.mpc.functions.table import DIVIDE, FUNCTIONS
from encml.mpc.parties import Parties

F = 16
ULP = 2.0**-F
NAMES = pytest.mark.parametrize("name", sorted(FUNCTIONS))
TOP = 2**46 - 1


@NAMES
def test_errors_over_the_whole_domain(name: str) -> None:
    function, parties = FUNCTIONS[name], in_process()
    x = adversarial()
    low, high = function.domain
    real = x.double() * ULP
    x = x[(real >= low) & (real <= high) & (real != 0 if name == "reciprocal" else real == real)]
    exact = torch.from_numpy(function.exact((x.double() * ULP).numpy()))
    assert len(x) > 5000
    worst = errors(opened(function.protocol(parties, split(parties, x), F)), exact, function).max()
    assert worst < 1, f"{name}: an error of {worst:.2f} times what is declared"


def test_errors_of_division() -> None:
    parties, n = in_process(), adversarial()
    x = n[torch.randperm(len(n), generator=torch.Generator().manual_seed(1))]
    x[x == 0] = 1
    exact = n.double() / x.double()
    fits = exact.abs() < 2**28
    payload = torch.stack([split(parties, n, 1), split(parties, x, 2)], 1)
    found = opened(DIVIDE.protocol(parties, payload, F))
    assert errors(found[fits], exact[fits], DIVIDE).max() < 1
    beyond = exact.abs() > 2**29
    assert int(beyond.sum()) > 100
    assert (found[beyond].double() * ULP == exact[beyond].sign() * (2**29 - 2 * ULP)).all()
    between = ~fits & ~beyond
    least = found[between].double() * ULP / exact[between].sign()
    assert (least >= 2**28).all()


def test_division_where_its_bound_is_tightest() -> None:
    """Quotients about 1/8, for which two units of the last place are 2^-12 of them, by divisors beyond 1."""
    generator, count = torch.Generator().manual_seed(2), 50_000
    x = (2 ** (18 + 20 * torch.rand(count, dtype=torch.float64, generator=generator))).long()
    n = (x * (0.1 + 0.06 * torch.rand(count, dtype=torch.float64, generator=generator))).long()
    parties = in_process()
    found = opened(inverse.divide(parties, split(parties, n, 1), split(parties, x, 2), F))
    assert errors(found, n.double() / x.double(), DIVIDE).max() < 0.9


@pytest.mark.parametrize("shapes", [((3, 4), (4,)), ((3, 4), (3, 1)), ((2, 3, 4), (1,)), ((5,), (5,)), ((2, 2), ())])
def test_division_broadcasts_its_divisor(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    parties = in_process()
    n, x = (random_ring(shape, seed) >> 40 for seed, shape in enumerate(shapes))
    x = torch.where(x.abs() < 2**12, x + 2**14, x)
    exact = n.double() / x.double()
    found = opened(inverse.divide(parties, split(parties, n, 1), split(parties, x, 2), F))
    assert found.shape == exact.shape
    assert errors(found, exact, DIVIDE).max() < 1


def test_beyond_the_domain() -> None:
    """What the table says; no result depends on masks."""
    x = torch.tensor([0, -1, -(2**16), -(2**40)])
    largest = torch.tensor([21 << F, 100 << F, TOP, -TOP])
    for seed in (1, 2):
        parties = in_process(seed)
        a, b = split(parties, x, seed), split(parties, largest, seed)
        assert opened(inverse.sqrt(parties, a, F)).tolist() == [0, 0, 0, 0]
        logs = opened(inverse.log(parties, a, F)).double() * ULP
        assert ((logs + 14.139).abs() < 1e-3).all()
        roots = opened(inverse.rsqrt(parties, a, F)).double() * ULP
        assert 840 < float(roots[0]) < 860
        assert roots[1:].tolist() == [0, 0, 0]
        assert 7.0e5 < float(opened(inverse.reciprocal(parties, a[:, :1], F))) * ULP < 7.2e5
        assert opened(exponential.exp(parties, b, F)).tolist() == [TOP, TOP, TOP, 0]
        zero = inverse.divide(parties, a, torch.zeros_like(a), F)
        assert opened(zero).abs().tolist() == 4 * [2**45 - 2]
        assert opened(zero)[[0, 3]].sign().tolist() == [1, -1]


@NAMES
def test_cost(name: str) -> None:
    function, parties, n = FUNCTIONS[name], in_process(), 640
    x = split(parties, torch.arange(1, n + 1) * 1000)
    with parties.ledger.measure() as spent:
        function.protocol(parties, x, F)
    assert (spent[0].rounds, spent[0].bytes / n) == (function.rounds, function.sent)


def test_cost_of_division() -> None:
    parties, n = in_process(), 640
    x = split(parties, torch.arange(1, n + 1) * 1000)
    with parties.ledger.measure() as spent:
        DIVIDE.protocol(parties, torch.stack([x, x], 1), F)
    assert (spent[0].rounds, spent[0].bytes / n) == (DIVIDE.rounds, DIVIDE.sent)


@pytest.mark.parametrize(
    ("name", "rounds", "bytes_per_party"), [("exp", 21, 430), ("rsqrt", 30, 300), ("sqrt", 30, 300)]
)
def test_within_the_goal(name: str, rounds: int, bytes_per_party: int) -> None:
    assert FUNCTIONS[name].rounds <= rounds
    assert FUNCTIONS[name].bytes_per_party <= bytes_per_party
    assert DIVIDE.rounds <= 30
    assert DIVIDE.bytes_per_party <= 300


def test_a_known_sign_makes_exp_cheaper() -> None:
    parties, n = in_process(), 640
    x = split(parties, -torch.arange(n) * 1500)
    with parties.ledger.measure() as spent:
        found = opened(exponential.exp(parties, x, F, nonpositive=True))
    assert (spent[0].rounds, spent[0].bytes / n) == (21, 419.25)
    exact = torch.exp(-torch.arange(n) * 1500.0 * ULP).double()
    assert errors(found, exact, FUNCTIONS["exp"]).max() < 1


@pytest.mark.parametrize("fraction_bits", [4, 6, 8, 11, 13, 20, 24])
def test_other_fraction_bits(fraction_bits: int) -> None:
    """The same functions on other formats: within 3 units of the last place, or 2^-10."""
    f, parties = fraction_bits, in_process()
    generator = torch.Generator().manual_seed(f)
    size = min(62 - f - 2, 40)
    x = (2 ** (size * torch.rand(300, dtype=torch.float64, generator=generator))).long()
    real = x.double() * 2.0**-f
    near = (torch.rand(300, dtype=torch.float64, generator=generator) * 20 - 10).mul(2**f).long()
    top = min(62 - 2 * f, 46 - f) * math.log(2)
    high = torch.linspace(top - 9, top - 0.01, 99, dtype=torch.float64).mul(2**f).long()
    cases = {
        "log": (inverse.log, x, real.log()),
        "sqrt": (inverse.sqrt, x, real.sqrt()),
        "rsqrt": (inverse.rsqrt, x, real.rsqrt()),
        "reciprocal": (inverse.reciprocal, x, 1 / real),
        "exp": (exponential.exp, near, (near * 2.0**-f).exp()),
        "exp of large": (exponential.exp, high, (high * 2.0**-f).exp()),
        "tanh": (FUNCTIONS["tanh"].protocol, near, (near * 2.0**-f).tanh()),
        "sin": (FUNCTIONS["sin"].protocol, near, (near * 2.0**-f).sin()),
    }
    for name, (protocol, integers, exact) in cases.items():
        held = exact.abs() < 2.0 ** (61 - 2 * f)
        found = opened(protocol(parties, split(parties, integers), f)).double() * 2.0**-f
        ulps = 2.0**-f if f < 18 else 2.0**-17
        allowed = torch.clamp(exact.abs() * 2**-10, min=3 * ulps)
        assert ((found - exact).abs() < allowed)[held].all(), (name, ((found - exact).abs() / allowed)[held].max())


@pytest.mark.parametrize("fraction_bits", range(4, 25))
def test_division_at_other_fraction_bits(fraction_bits: int) -> None:
    f, parties = fraction_bits, in_process()
    generator = torch.Generator().manual_seed(f)
    x = (2 ** (min(60 - f, 40) * torch.rand(300, dtype=torch.float64, generator=generator))).long()
    n, exact = x.flip(0), x.flip(0).double() / x.double()
    held = exact < 2.0 ** (59 - 2 * f)
    found = opened(inverse.divide(parties, split(parties, n), split(parties, x), f)).double() * 2.0**-f
    allowed = torch.clamp(exact * 2.0 ** (-12 if f >= 14 else 2 - f), min=2 * 2.0**-f)
    assert ((found - exact).abs() < allowed)[held].all()
    assert held.sum() > 200


@given(st.lists(st.integers(-TOP, TOP), min_size=1, max_size=70), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_exponents(values: list[int], seed: int) -> None:
    """2^(e-1) <= |x| <= 2^(e+1) whatever the shares, e = 0 for 0 alone; of positive ones the same without signs."""
    parties, x = in_process(seed % 100), torch.tensor(values)
    for signed in (True, False):
        e = exponents(parties, split(parties, x, seed), F, "test", signed=signed)
        number = e.by_group(partial(mul, e.groups.size)) + e.by_place(lambda place: place)
        ones = e.by_group(lambda h: 1, odd=True)
        found, signs = (opened(t).tolist() for t in e.read(parties, [number, ones], "test"))
        for value, exponent, sign in zip(values, found, signs, strict=True):
            if not signed and value < 0:
                assert (exponent, sign) == (0, 0)
                continue
            assert sign == (-1 if value < 0 else 1)
            assert abs(value) <= 2 ** (exponent + 1)
            assert value == 0 or 2 * abs(value) >= 2**exponent


@pytest.mark.parametrize("fraction_bits", range(4, 25))
def test_groups_hold_all_exponents(fraction_bits: int) -> None:
    groups = Groups.of(fraction_bits)
    assert groups.size % 2 == 0
    assert 62 - fraction_bits <= groups.top < 60


def test_a_value_is_located_once() -> None:
    """A curve and its slope on the same cells: 8 rounds more, not 19."""
    parties, n = in_process(), 64
    x = split(parties, torch.arange(-32, 32) << 14)
    cells = curves.locate(parties, x, F, curves.FINE)
    with parties.ledger.measure() as spent:
        value, slope = parties.together(
            lambda: curves.evaluate(parties, x, F, cells, curves.GELU),
            lambda: curves.evaluate(parties, x, F, cells, curves.GELU_SLOPE),
        )
    assert spent[0].rounds == 8
    real = torch.arange(-32, 32).double() / 4
    real.requires_grad_()
    exact = torch.nn.functional.gelu(real)
    exact.sum().backward()
    assert ((opened(value) * ULP - exact).abs() < 2 * ULP).all()
    assert real.grad is not None
    assert ((opened(slope) * ULP - real.grad).abs() < 2 * ULP).all()
    assert n == len(cells.planes[0, 0]) * 64


@pytest.mark.parametrize("name", ["exp", "reciprocal", "gelu", "sin"])
def test_separate_parties_get_the_same(name: str) -> None:
    """Each party in a thread of its own, with nothing but its shares: bit for bit what the three here get."""
    x = torch.tensor([3 << F, -(5 << F), 1, 2**30 + 7])

    def protocol(parties: Parties, payload: Tensor) -> Tensor:
        return FUNCTIONS[name].protocol(parties, payload, F)

    together = in_process(9)
    expected = protocol(together, split(together, x))
    apart, _ = run_apart(lambda parties: protocol(parties, split(parties, x)), seed=9)
    for rank, payload in enumerate(apart):
        assert torch.equal(payload, expected[[rank, (rank + 1) % 3]])
