"""The steps that everything is made of: a round, products, comparisons, matrix products, a convolution."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.bench.case import Case, Job, normal
from encml.mpc import comparison
from encml.mpc.multiplication import product
from encml.mpc.session import Session
from encml.mpc.truncation import truncate_rows
from encml.tensor import SharedTensor, share
from encml.tensor.secret import Secret
from encml.tensor.shared import secret

_ROUND_BYTES = 1024
_LOOPS = 200
_PADDING = 1

Size = tuple[int, ...]


def fresh(x: SharedTensor) -> SharedTensor:
    """The same shares with nothing remembered about them: a comparison, say, is paid for at every run. No copy."""
    value = secret(x)
    return SharedTensor(Secret(value.session, value.fraction_bits, payload=value.payload), x.dtype)


def settled(x: Tensor) -> SharedTensor:
    """A result on shares, with whatever was still pending of it done."""
    assert isinstance(x, SharedTensor)
    secret(x).settle()
    return x


def _round(session: Session, size: Size) -> Job:
    """``size``: bytes. Every party sends to its neighbour, so no party waits for more than one message."""
    parties = session.parties
    rows = torch.zeros(parties.here, size[0], dtype=torch.uint8)

    def run() -> None:
        for _ in range(_LOOPS):
            parties.net.rotate(rows, +1, "round")

    return Job(run)


def _product(session: Session, size: Size) -> Job:
    left, right = normal(*size), normal(*size, seed=1)
    x, y = (secret(share(value, session=session)) for value in (left, right))
    parties, bits = session.parties, 2 * session.fraction_bits

    def run() -> SharedTensor:
        payload = parties.reshare(product(parties, torch.mul, x.payload, y.payload), "multiply")
        return SharedTensor(Secret(session, bits, payload=payload), torch.float64)

    return Job(run, left.double() * right.double())


def _product_truncate(session: Session, size: Size) -> Job:
    left, right = normal(*size), normal(*size, seed=1)
    x, y = (secret(share(value, session=session)) for value in (left, right))
    parties, bits = session.parties, session.fraction_bits

    def run() -> SharedTensor:
        payload = truncate_rows(parties, product(parties, torch.mul, x.payload, y.payload), bits)
        return SharedTensor(Secret(session, bits, payload=payload), torch.float64)

    return Job(run, left.double() * right.double())


def _positive(session: Session, size: Size) -> Job:
    values = normal(*size)
    x = share(values, session=session)
    return Job(lambda: settled(fresh(x) > 0), (values > 0).double())


def _relu(session: Session, size: Size) -> Job:
    values = normal(*size)
    x = share(values, session=session)
    return Job(lambda: settled(torch.relu(fresh(x))), torch.relu(values.double()))


def _select(session: Session, size: Size) -> Job:
    values = normal(*size)
    chosen = normal(*size, seed=1)
    x, parties = secret(share(values, session=session)), session.parties
    bits = comparison.negative(parties, secret(share(chosen, session=session)).payload)

    def run() -> SharedTensor:
        return SharedTensor(x.like(comparison.select(parties, bits, x.payload)), torch.float64)

    return Job(run, values.double() * (chosen < 0))


def _matmul(session: Session, size: Size) -> Job:
    """``size``: rows, inner, columns."""
    left, right = normal(size[0], size[1]), normal(size[1], size[2], seed=1)
    x, y = share(left, session=session), share(right, session=session)
    return Job(lambda: settled(fresh(x) @ fresh(y)), left.double() @ right.double())


def _convolution(session: Session, size: Size) -> Job:
    """``size``: batch, channels in, channels out, height and width of the map; kernels are 3 x 3, padded."""
    batch, before, after, side = size
    images, kernels = normal(batch, before, side, side), normal(after, before, 3, 3, seed=1)
    x, w = share(images, session=session), share(kernels, session=session)
    expected = F.conv2d(images.double(), kernels.double(), padding=_PADDING)
    return Job(lambda: settled(F.conv2d(fresh(x), fresh(w), padding=_PADDING)), expected)


def _elementwise(
    name: str, does: str, prepare: Callable[[Session, Size], Job], cost: str, comparison_bits: int | None = None
) -> Case:
    declared = (cost, math.prod)
    return Case(name, "primitives", does, (100_000,), (1_000,), prepare, declared, comparison_bits=comparison_bits)


def _matrix(name: str, size: Size, quick: Size) -> Case:
    does = "matrix product {0} × {1} × {2}"
    return Case(name, "primitives", does, size, quick, _matmul, ("product_truncate", lambda s: s[0] * s[2]))


PRIMITIVES: tuple[Case, ...] = (
    Case(
        "round",
        "primitives",
        "a round: {0:,} B to the next party",
        (_ROUND_BYTES,),
        (_ROUND_BYTES,),
        _round,
        loops=_LOOPS,
    ),
    _elementwise("product", "{0:,} products", _product, "product"),
    _elementwise("product-truncate", "{0:,} products, truncated", _product_truncate, "product_truncate"),
    _elementwise("positive", "{0:,} times x > 0", _positive, "positive"),
    _elementwise("relu", "ReLU of {0:,}", _relu, "relu"),
    _elementwise("relu-32", "ReLU of {0:,}, 32 bits declared", _relu, "relu", 32),
    _elementwise("select", "{0:,} times bit · x", _select, "select"),
    _matrix("matmul-512", (512, 512, 512), (32, 32, 32)),
    _matrix("matmul-layer", (128, 784, 128), (8, 49, 8)),
    Case(
        "convolution",
        "primitives",
        "convolution 3 × 3, {1} to {2} channels, {0} maps {3} × {3}",
        (64, 16, 32, 14),
        (2, 3, 4, 7),
        _convolution,
        ("product_truncate", lambda s: s[0] * s[2] * s[3] ** 2),
    ),
)
