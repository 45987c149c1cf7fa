"""LSTM, GRU, RNN, their cells and packed sequences: values, gradients, strides, rounds.

Tolerances: a step's gates are off by 2 ulp each (sigmoid, tanh) and so are the products that they enter; with |c| and
|h| below 1 and forget gates that shrink what is carried on, 3 to 4 steps stay within 12 ulp. Gradients add up such
errors over steps, batch and gates.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from modules import module_matches, on_the_grid
from reference import grid, near
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import encml
from encml import Session
from encml.errors import InvalidTensor

KINDS: list[tuple[Any, dict[str, Any]]] = [
    (nn.LSTM, {}),
    (nn.GRU, {}),
    (nn.RNN, {"nonlinearity": "tanh"}),
    (nn.RNN, {"nonlinearity": "relu"}),
]
KIND = pytest.mark.parametrize(("kind", "settings"), KINDS, ids=["lstm", "gru", "rnn-tanh", "rnn-relu"])
SHAPES: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"num_layers": 3},
    {"bidirectional": True},
    {"bidirectional": True, "num_layers": 2, "batch_first": True},
]
ULPS, GRAD_ULPS = 12, 60


def network(kind: Any, *sizes: int, **settings: Any) -> nn.Module:
    torch.manual_seed(3)
    return on_the_grid(kind(*sizes, **settings))


@KIND
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(shape) or "plain")
def test_values_and_gradients(kind: Any, settings: dict[str, Any], shape: dict[str, Any]) -> None:
    module_matches(network(kind, 5, 4, **settings, **shape), grid(3, 2, 5), ulps=ULPS, grad_ulps=GRAD_ULPS)


@KIND
def test_initial_states_and_unbatched_input(kind: Any, settings: dict[str, Any]) -> None:
    module = network(kind, 3, 4, 2, bidirectional=True, **settings)
    states = (grid(4, 2, 4, seed=1, low=-1, high=1), grid(4, 2, 4, seed=2, low=-1, high=1))
    given = states if kind is nn.LSTM else states[0]
    module_matches(module, grid(2, 2, 3), given, ulps=ULPS, grad_ulps=GRAD_ULPS)
    module_matches(network(kind, 3, 4, **settings), grid(4, 3), ulps=ULPS, grad_ulps=GRAD_ULPS)


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[-1]], ids=lambda shape: "-".join(shape))
def test_projected_lstm(shape: dict[str, Any]) -> None:
    module_matches(network(nn.LSTM, 3, 4, proj_size=2, **shape), grid(3, 2, 3), ulps=ULPS, grad_ulps=GRAD_ULPS)


@pytest.mark.parametrize("bias", [True, False])
def test_cells(bias: bool) -> None:
    x, h, c = grid(2, 3), grid(2, 4, seed=1, low=-1, high=1), grid(2, 4, seed=2, low=-1, high=1)
    module_matches(network(nn.LSTMCell, 3, 4, bias), x, (h, c), ulps=6, grad_ulps=20)
    for kind, settings in KINDS[1:]:
        cell = {nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}[kind]
        module_matches(network(cell, 3, 4, bias, **settings), x, h, ulps=6, grad_ulps=20)
    module_matches(network(nn.LSTMCell, 3, 4, bias), x, ulps=6, grad_ulps=20)
    module_matches(network(nn.GRUCell, 3, 4, bias), x[0], ulps=6, grad_ulps=20)


@KIND
@pytest.mark.parametrize("lengths", [[4, 2, 1], [1, 4, 4]])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences(kind: Any, settings: dict[str, Any], lengths: list[int], bidirectional: bool) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(kind, 3, 4, bidirectional=bidirectional, batch_first=True, **settings)

        def forward(self, x: Tensor) -> Any:
            packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
            output, states = self.inner(packed)
            assert isinstance(output, PackedSequence)
            padded, found = pad_packed_sequence(output, batch_first=True, padding_value=0.25, total_length=5)
            assert found.tolist() == lengths
            return padded, states

    module_matches(Packed(), grid(3, 4, 3), ulps=ULPS, grad_ulps=GRAD_ULPS)


def test_packed_sequences_that_make_no_sense() -> None:
    x = encml.share(grid(4, 3, 2))
    for lengths in ([1, 4, 2], [5, 1, 1], [3, 2], [3, 2, 0]):
        with pytest.raises(InvalidTensor, match="lengths"):
            pack_padded_sequence(x, torch.tensor(lengths))
    with pytest.raises(InvalidTensor, match="no time step"):
        encml.share(network(nn.LSTM, 2, 2))(x[:0])


def test_padding_of_packed_sequences() -> None:
    x = grid(4, 3, 2)
    for lengths in ([4, 3, 1], [2, 1, 1]):
        plain = pack_padded_sequence(x, torch.tensor(lengths))
        packed = pack_padded_sequence(encml.share(x), torch.tensor(lengths))
        near(packed.data.reveal(), plain.data, 0)
        assert torch.equal(packed.batch_sizes, plain.batch_sizes)
        found, expected = pad_packed_sequence(packed), pad_packed_sequence(plain)
        near(found[0].reveal(), expected[0], 0)
        assert torch.equal(found[1], expected[1])


def test_dropout_between_layers() -> None:
    torch.manual_seed(0)
    module = network(nn.LSTM, 3, 40, 2, dropout=0.5)
    shared, x = encml.share(module), encml.share(grid(1, 8, 3))
    first, second = (shared(x)[0].reveal() for _ in range(2))
    assert (first - second).abs().max() > 0.01
    near(shared.eval()(x)[0].reveal(), module.eval()(grid(1, 8, 3))[0], ULPS)


def test_plain_inputs_and_plain_weights() -> None:
    module, x = network(nn.LSTM, 3, 4), grid(3, 2, 3)
    near(encml.share(module)(x)[0].reveal(), module(x)[0], ULPS)
    near(module(encml.share(x))[0].reveal(), module(x)[0], ULPS)


@KIND
@pytest.mark.parametrize("length", [1, 2, 5])
def test_more_layers_than_steps_and_fewer(kind: Any, settings: dict[str, Any], length: int) -> None:
    module_matches(network(kind, 3, 4, 3, **settings), grid(length, 2, 3), ulps=ULPS, grad_ulps=GRAD_ULPS)


def test_rounds_of_layers(session: Session) -> None:
    """Layers work at the same time, each a step behind the one below."""
    module, x = encml.share(network(nn.LSTM, 8, 4, 3)), encml.share(grid(5, 1, 8))
    with session.ledger.measure() as spent, torch.no_grad():
        module(x)[0].reveal()
    assert spent[0].rounds == (5 + 3 - 1) * 47 + 1


@pytest.mark.parametrize(
    ("kind", "settings", "a_step"),
    [(nn.LSTM, {}, 47), (nn.GRU, {}, 47), (nn.RNN, {}, 22), (nn.LSTM, {"bidirectional": True}, 47)],
)
def test_rounds_of_a_time_step(kind: Any, settings: dict[str, Any], a_step: int, session: Session) -> None:
    """Gates settled 3, their sigmoid 19, the cell 3, its tanh 19, the output 3: at either direction at once."""
    module = encml.share(network(kind, 8, 64, **settings))
    for steps in (1, 4):
        x = encml.share(grid(steps, 1, 8))
        with session.ledger.measure() as spent, torch.no_grad():
            module(x)[0].reveal()
        assert spent[0].rounds == steps * a_step + 1
    # A hidden unit of an LSTM: four sigmoids, one tanh, the products.
    assert spent[0].bytes_per_party / (steps * 64 * (2 if settings else 1)) < BYTES_A_UNIT[kind]


BYTES_A_UNIT = {nn.LSTM: 1080, nn.GRU: 670, nn.RNN: 225}
