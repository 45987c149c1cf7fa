"""What every primitive costs, in one table: rounds, and bytes sent by the three parties together.

The ledger of a session must agree exactly (tests/mpc/test_costs.py); ``encml bench`` and the docs read the same table.
Frame headers of a transport are not counted. Bit planes travel in whole 64-bit words, so a comparison of n elements
costs what n rounded up to a multiple of 64 does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from encml.net.transport import PARTIES
from encml.ring.bits import WORD, words_for

_RING_BYTES = 8


@dataclass(frozen=True, slots=True)
class Declared:
    """The cost of one primitive for n elements (of its result) and a width.

    ``width`` is the default, and what it means: "bits", the declared range of a comparison; "shift", the bits that a
    truncation drops; "" where there is none and the argument is ignored.
    """

    does: str
    rounds: Callable[[int], int]
    sent: Callable[[int, int], int]
    width_means: str = ""
    width: int = 0

    def bytes_per_party(self, width: int | None = None) -> float:
        """Bytes an element and party, averaged over the parties, for many elements."""
        return self.sent(WORD, self.width if width is None else width) / (WORD * PARTIES)


def carry_gates(bits: int) -> tuple[int, int]:
    """(AND gates, levels) of the prefix tree for the carry into bit ``bits`` - 1: (118, 6) at 64, (55, 5) at 32."""
    groups, gates, levels = bits - 1, 0, 0
    while groups > 1:
        pairs = groups // 2
        gates += 2 * pairs - 1
        groups -= pairs
        levels += 1
    return gates, levels


def _plane(n: int) -> int:
    """Bytes of one bit of n elements."""
    return words_for(n) * WORD // 8


def _elements(count: int) -> Callable[[int, int], int]:
    """``count`` ring elements for each element, over the three parties."""
    return lambda n, width: count * _RING_BYTES * n


def _comparison(n: int, bits: int) -> int:
    """One XOR sharing of ``bits`` planes, one resharing of a pair of bits - 1 planes, the gates of the carry."""
    return _plane(n) * (bits + 2 * (bits - 1) + PARTIES * carry_gates(bits)[0])


def _division(n: int, shift: int) -> int:
    """The dealt correction modulo 2^16, 2^32 or 2^64, and two packed bits."""
    correction = 2 if shift <= 16 else 4 if shift <= 32 else 8
    return correction * n + 2 * -(-n // 8)


def _truncation(n: int, shift: int) -> int:
    """A division, and the resharing of a pair."""
    return _division(n, shift) + 2 * _RING_BYTES * n


def _constant(rounds: int) -> Callable[[int], int]:
    return lambda width: rounds


def _after_comparison(does: str, rounds: int, ring_elements: int) -> Declared:
    return Declared(
        does,
        lambda bits: 2 + carry_gates(bits)[1] + rounds,
        lambda n, bits: _comparison(n, bits) + ring_elements * _RING_BYTES * n,
        "bits",
        64,
    )


COSTS: Mapping[str, Declared] = MappingProxyType(
    {
        "share": Declared("share what one party knows", _constant(1), _elements(1)),
        "reveal": Declared("open to all three parties", _constant(1), _elements(3)),
        "reveal_to": Declared("open to one party", _constant(1), _elements(1)),
        "reveal_rows": Declared("open additive rows to all three parties", _constant(1), _elements(6)),
        "product": Declared("product, matmul or convolution, reshared", _constant(1), _elements(3)),
        "reshare_pair": Declared("reshare what two parties hold a term each of", _constant(1), _elements(2)),
        "and_bits": Declared("AND of one bit plane", _constant(1), lambda n, width: PARTIES * _plane(n)),
        "truncate": Declared("divide by 2^shift", _constant(2), _truncation, "shift", 16),
        "product_truncate": Declared(
            "product divided by 2^shift", _constant(3), lambda n, m: _truncation(n, m) + _RING_BYTES * n, "shift", 16
        ),
        "negative": _after_comparison("x < 0 as a shared bit", 0, 0),
        "positive": _after_comparison("x > 0 as a shared 0 or 1", 2, 3),
        "relu": _after_comparison("max(x, 0)", 2, 4),
        "negative_rows": _after_comparison("x < 0 as a shared bit, for a product that was not reshared", 0, 2),
        "select_rows": Declared(
            "bit * product, divided by 2^shift",
            _constant(3),
            lambda n, m: _division(n, m) + 7 * _RING_BYTES * n,
            "shift",
            16,
        ),
        "scale_rows": Declared(
            "product divided by 2^shift, times something public, divided by 2^shift",
            _constant(4),
            lambda n, m: 2 * _division(n, m) + 3 * _RING_BYTES * n,
            "shift",
            16,
        ),
        "to_arithmetic": Declared("a shared bit to a shared 0 or 1", _constant(2), _elements(3)),
        "select": Declared("bit * x", _constant(2), _elements(4)),
    }
)
