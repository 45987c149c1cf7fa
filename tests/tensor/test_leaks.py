# ruff: noqa: UP031, UP032  (every way to format is tried)
"""Nothing shows a secret's values: not what it prints, not what Python would make of it, not an error."""

from __future__ import annotations

import copy
import math
import pickle
import re
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import encml
from encml import Session, SharedTensor
from encml.errors import EncmlError, SecretError
from encml.mpc.functions.exponent import exponents
from encml.tensor.shared import secret

MARK = 1234.5678
"""The value that must not be seen; nothing else in these tests is written with these digits."""


def marked(*shape: int) -> SharedTensor:
    return encml.share(torch.full(shape, MARK, dtype=torch.float64))


def shows(text: str, x: SharedTensor) -> bool:
    """Whether a text holds the value or any of its shares."""
    shares = [str(int(word)) for word in secret(x).terms.reshape(-1)[:9].abs()]
    return "1234" in text or any(share in text for share in shares if len(share) > 6)


def test_what_is_printed() -> None:
    x = marked(2, 3)
    leaf = marked(2).requires_grad_()
    leaf.sum().backward()
    model = encml.share(nn.Linear(2, 2))
    texts = [
        repr(x), str(x), f"{x}", f"{x!r:>80}", f"{x:.3f}", "{}".format(x), "%s" % x, "%r" % (x,),
        repr([x, {"a": x}]), repr(x * x), repr(x > 0), repr(x[0, 0]), repr(leaf), repr(leaf.grad), str(leaf.grad),
        repr(nn.Parameter(x)), repr(list(model.parameters())), repr(model), repr(model.state_dict()), repr(secret(x)),
        repr(vars(x)), repr(x.__dict__), str(x.session), repr(x.session.parties), repr(x.t()), repr(x.data),
        repr(torch.optim.SGD(model.parameters(), lr=0.1)), str(x.grad_fn), repr((leaf * 2).grad_fn),
    ]  # fmt: skip
    for text in texts:
        assert not shows(text, x), text
    assert repr(x) == "SharedTensor(shape=(2, 3), dtype=torch.float64)"
    assert f"{x:.3f}" == repr(x)
    assert repr(leaf) == "SharedTensor(shape=(2,), dtype=torch.float64, requires_grad=True)"


def test_what_a_secret_remembers_prints_no_share() -> None:
    x = marked(2, 4)
    results = (
        torch.sigmoid(x), torch.tanh(x), x.relu(), x.softmax(1), x.log_softmax(1), *x.max(1), *x.sort(1), x.amax(1),
        F.layer_norm(x, (4,)), F.batch_norm(x, None, None, training=True), x.maximum(x + 1),
    )  # fmt: skip
    F.nll_loss(results[4], torch.tensor([0, 1]))
    facts = [fact for y in (x, *results) for fact in secret(y)._cell.facts.values()]
    assert len(facts) > 8
    for fact in facts:
        shown = re.sub(r" at 0x[0-9a-f]+>", ">", repr(fact))
        assert "Secret" in shown or not re.search(r"\d{9}|tensor\(\[", shown), shown
    found = exponents(x.session.parties, secret(x).payload.reshape(3, -1), 16, "test", signed=True)
    assert not re.search(r"tensor\(", repr(found))


PLAIN: list[Callable[[SharedTensor], Any]] = [
    lambda x: bool(x),
    lambda x: float(x),
    lambda x: int(x),
    lambda x: complex(x),
    lambda x: [1, 2][x],
    lambda x: range(x),
    lambda x: math.sqrt(x),
    lambda x: "%f" % x,
    lambda x: "yes" if x else "no",
    lambda x: not x,
    lambda x: x and 1,
    lambda x: x > 0 or 1,
    lambda x: any([x]),
    lambda x: max(x, 1),
    lambda x: sorted([x, x]),
    lambda x: 3.0 in x[None],
    lambda x: x in [marked()],
    lambda x: x.item(),
    lambda x: x.tolist(),
    lambda x: x.numpy(),
    lambda x: x.detach().cpu().numpy(),
    lambda x: x.numpy(force=True),
    lambda x: np.asarray(x),
    lambda x: np.array([x]),
    lambda x: np.float64(x),
    lambda x: np.ones(1) * x,
    lambda x: x.__array__(),
    lambda x: torch.Tensor.item(x),
    lambda x: torch.Tensor.tolist(x),
    lambda x: torch.Tensor.numpy(x),
    lambda x: torch.Tensor.__array__(x),
    lambda x: torch.Tensor.__bool__(x),
    lambda x: torch.Tensor.__float__(x),
    lambda x: torch.Tensor.__int__(x),
    lambda x: torch.Tensor.__index__(x),
    lambda x: torch.Tensor.__contains__(x[None], 1),
    lambda x: torch.Tensor.__dlpack__(x),
    lambda x: torch.Tensor.__reduce_ex__(x, 2),
    lambda x: torch.from_dlpack(x),
    lambda x: torch.equal(x, x),
    lambda x: x.equal(x),
    lambda x: torch.allclose(x, x),
    lambda x: x.allclose(torch.zeros(())),
    lambda x: torch.zeros(()).equal(x),
    lambda x: torch.allclose(torch.zeros(()), x),
    lambda x: torch.is_nonzero(x),
    lambda x: x.is_nonzero(),
    lambda x: torch.testing.assert_close(x, x.clone()),
    lambda x: torch.tensor([x, x]),
    lambda x: torch.as_tensor([x]),
    lambda x: torch.Tensor([x]),
    lambda x: torch.full((2,), x),
    lambda x: torch.zeros(2).fill_(x),
    lambda x: torch.arange(x),
    lambda x: "%d" % x,
    lambda x: torch.add(torch.zeros(2), 1, alpha=x),
    lambda x: pickle.dumps(x),
    lambda x: copy.copy(x),
    lambda x: x.storage(),
    lambda x: x.untyped_storage(),
    lambda x: x.data_ptr(),
    lambda x: x.apply_(lambda value: value),
    lambda x: x.map_(x, lambda value, other: value),
    lambda x: x.map2_(x, x, lambda value, a, b: value),
    lambda x: x.view(torch.int64),
    lambda x: x.share_memory_(),
    lambda x: x.unique(),
    lambda x: x.nonzero(),
    lambda x: x.masked_select(x > 0),
    lambda x: torch.ones(3)[x > 0],
    lambda x: x.__cuda_array_interface__,
]


@pytest.mark.parametrize("make_plain", PLAIN)
def test_what_would_make_a_plain_value_raises(make_plain: Callable[[SharedTensor], Any]) -> None:
    """By a named error that says what to do; where PyTorch itself stops first, by its own, without the value."""
    x = marked()
    with pytest.raises((EncmlError, TypeError, RuntimeError, AttributeError)) as info:
        make_plain(x)
    text = "".join(traceback.format_exception(info.value))
    assert not shows(re.sub(r'line \d+|File ".*"', "", text), x)


@pytest.mark.parametrize("make_plain", PLAIN[:25])
def test_the_advice_is_the_same(make_plain: Callable[[SharedTensor], Any]) -> None:
    with pytest.raises(SecretError, match=r"call reveal\(\)"):
        make_plain(marked())


@pytest.mark.filterwarnings("ignore:To copy construct")
def test_what_makes_a_tensor_of_a_tensor_keeps_the_secret() -> None:
    x = marked(2)
    assert torch.as_tensor(x) is x
    for y in (torch.asarray(x), torch.tensor(x), torch.zeros(2).new_tensor(x), x.as_subclass(torch.Tensor)):
        assert isinstance(y, SharedTensor)
        assert not shows(repr(y), x)


FAILING: list[Callable[[SharedTensor], Any]] = [
    lambda x: torch.fft.fft(x),
    lambda x: x + "a",
    lambda x: x @ x @ x[None],
    lambda x: x.view(7),
    lambda x: x.transpose(0, 5),
    lambda x: x.expand(3, 7, 7),
    lambda x: torch.cat([x, x[0, 0][None]]),
    lambda x: x[5],
    lambda x: x[:, torch.tensor([9])],
    lambda x: x / 0,
    lambda x: x + torch.full((2, 3), math.nan),
    lambda x: x * 1e300,
    lambda x: x.copy_(torch.ones(4)),
    lambda x: x.add_(torch.ones(2, 2, 3)),
    lambda x: torch.zeros(2, 3).add_(x),
    lambda x: x.half(),
    lambda x: x.sum(dtype=torch.int64),
    lambda x: F.conv2d(x[None, None], x[None, None], stride=0),
    lambda x: F.avg_pool2d(x[None], 9),
    lambda x: F.linear(x, x.t()),
    lambda x: encml.share(x),
    lambda x: x.reveal(to=7),
    lambda x: setattr(x, "data", torch.zeros(1)),
    lambda x: x.requires_grad_().sum(0).backward(),
]


@pytest.mark.parametrize("fail", FAILING)
def test_errors_hold_no_value(fail: Callable[[SharedTensor], Any]) -> None:
    x = marked(2, 3)
    with pytest.raises(Exception) as info:
        fail(x)
    error: BaseException | None = info.value
    while error is not None:
        assert not shows(f"{error} {error.args!r}", x)
        error = error.__cause__ or error.__context__


def test_the_range_is_named_when_an_outsider_is_refused() -> None:
    for value, named in [
        (torch.tensor([1.0, math.nan]), "NaN"),
        (torch.tensor([1.0, math.inf]), r"\[1, inf\]"),
        (torch.tensor([-3.5, 2.0**31]), r"\[-3.5, 2.14748e\+09\]"),
        (torch.tensor([1j]), "complex64"),
        (torch.zeros(2, dtype=torch.float64).fill_(-(2.0**30)), r"-1.07374e\+09"),
    ]:
        with pytest.raises(encml.errors.InvalidTensor, match=named):
            encml.share(value)
    for value in ([1.0, 2.0], 3.0, np.ones(2), None):
        with pytest.raises(encml.errors.InvalidTensor, match=r"torch\.Tensor or nn\.Module"):
            encml.share(value)  # type: ignore[call-overload]
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = math.inf
    with pytest.raises(encml.errors.InvalidTensor, match="inf"):
        encml.share(model)


def test_share_memory_does_not_crash_a_model() -> None:
    with pytest.raises(NotImplementedError, match="share_memory_"):
        encml.share(nn.Linear(2, 2)).share_memory()


@pytest.mark.parametrize(
    ("operation", "name", "advice"),
    [
        (lambda x: torch.randn_like(x), "randn_like", "share"),
        (lambda x: torch.native_dropout(x, 0.5, True), "native_dropout", "F.dropout"),
        (lambda x: torch.ones(2, 4)[x > 0], "mask", "torch.where"),
        (lambda x: x.unique(), "_unique2", "torch.where"),
        (lambda x: torch.ones(8).index_fill(0, (x[0] > 0).long(), 1.0), "index", "gather"),
        (lambda x: torch._foreach_exp([x]), "_foreach_exp", "foreach"),
        (lambda x: torch.fft.fft(x), "fft", ""),
        (lambda x: torch.linalg.svd(x), "svd", ""),
    ],
)
def test_what_is_not_supported_says_so(operation: Callable[[Tensor], Any], name: str, advice: str) -> None:
    """By name and with a next step; a plain model applied to a secret included."""
    with pytest.raises(encml.UnsupportedOperation) as info:
        operation(encml.share(torch.rand(2, 4)))
    assert name in str(info.value)
    assert advice in str(info.value)
    assert len(str(info.value)) < 250


def test_nothing_is_sent_by_an_operation_that_is_refused(session: Session) -> None:
    x = encml.share(torch.rand(2, 4))
    before = session.ledger.total.rounds
    for f in (lambda: torch.fft.fft(x), lambda: x.half(), lambda: torch.zeros(2, 4).add_(x), lambda: x.unique()):
        with pytest.raises(EncmlError):
            f()
    assert session.ledger.total.rounds == before


def test_revealing_to_one_party() -> None:
    x = encml.share(torch.tensor([1.5, -2.0]))
    for rank in range(3):
        assert torch.equal(x.reveal(to=rank), torch.tensor([1.5, -2.0]))
        assert torch.equal(encml.reveal(x, to=rank), torch.tensor([1.5, -2.0]))
