"""LSTM, GRU, RNN and their cells, as differentiable operations on SharedTensors.

What matters between parties is the number of rounds, and so the number of steps that wait for one another:

* the inputs of all time steps are projected in one matrix product, which stays pending: its truncation is that of the
  hidden state's product, which it is added to;
* both directions of a bidirectional layer are one computation: the second one reads every sequence backwards;
* layers of one direction work at the same time, each a step behind the one below;
* tanh(g) = 2 sigmoid(2 g) - 1, so the four gates of an LSTM are one sigmoid, their weights for g doubled beforehand.

A time step of an LSTM takes the settling of its gates (3 rounds), a sigmoid, the cell (3), a tanh, the output (3).

Packed sequences have public lengths. Step t works on the sequences that are longer than t, the longest first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from encml.errors import InvalidTensor
from encml.tensor.functions.common import settle_together

_States = tuple[Tensor, ...]
"""The hidden state (D, B, H), for an LSTM followed by the cell (D, B, C), of D lanes: directions or layers."""
_ALL = slice(None)


@dataclass(frozen=True, slots=True)
class _Weights:
    """The parameters of one lane: of the input, of the hidden state, and of its projection."""

    ih: Tensor
    hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    hr: Tensor | None

    @classmethod
    def of(cls, parameters: Sequence[Tensor], biases: bool) -> _Weights:
        """From PyTorch's flat list: w_ih, w_hh, b_ih and b_hh where there are biases, w_hr where there is one."""
        ih, hh, *others = parameters
        b_ih, b_hh = others[:2] if biases else (None, None)
        projection = others[2:] if biases else others
        return cls(ih, hh, b_ih, b_hh, projection[0] if projection else None)


class _Cell(Protocol):
    def inputs(self, lane: int, x: Tensor) -> Tensor:
        """What the inputs (N, I) of any number of steps contribute, (N, G)."""

    def step(self, x: Tensor, states: _States, lanes: slice = _ALL) -> _States:
        """The next states of some lanes, from the contributions (D, b, G) of their inputs."""


class _Lstm:
    """i, f, g, o = the gates; c' = f c + i g; h' = o tanh(c'), times w_hr^T if there is one."""

    def __init__(self, lanes: Sequence[_Weights]) -> None:
        size = len(lanes[0].ih) // 4
        doubled = torch.ones(4 * size, dtype=lanes[0].ih.dtype)
        doubled[2 * size : 3 * size] = 2
        self._ih = [w.ih * doubled[:, None] for w in lanes]
        self._bias = [None if w.b_ih is None else _sum(w.b_ih, w.b_hh) * doubled for w in lanes]
        self._hh = torch.stack([w.hh * doubled[:, None] for w in lanes]).transpose(1, 2)
        projections = [w.hr for w in lanes if w.hr is not None]
        self._hr = torch.stack(projections).transpose(1, 2) if projections else None

    def inputs(self, lane: int, x: Tensor) -> Tensor:
        return F.linear(x, self._ih[lane], self._bias[lane])

    def step(self, x: Tensor, states: _States, lanes: slice = _ALL) -> _States:
        hidden, cell = states
        i, f, g, o = torch.sigmoid(torch.baddbmm(x, hidden, self._hh[lanes])).chunk(4, -1)
        cell = f * cell + i * (2 * g - 1)
        hidden = o * torch.tanh(cell)
        return (hidden if self._hr is None else torch.bmm(hidden, self._hr[lanes])), cell


class _Gru:
    """r, z = the gates; n = tanh(x_n + r h_n); h' = n + z (h - n)."""

    def __init__(self, lanes: Sequence[_Weights]) -> None:
        self._size = len(lanes[0].ih) // 3
        self._lanes = lanes
        self._gates = torch.stack([w.hh[: -self._size] for w in lanes]).transpose(1, 2)
        self._new = torch.stack([w.hh[-self._size :] for w in lanes]).transpose(1, 2)
        biases = [w.b_hh for w in lanes if w.b_hh is not None]
        self._bias = torch.stack([b[-self._size :] for b in biases])[:, None] if biases else None

    def inputs(self, lane: int, x: Tensor) -> Tensor:
        w = self._lanes[lane]
        bias = w.b_ih
        if w.b_hh is not None:
            bias = _sum(bias, torch.cat([w.b_hh[: -self._size], torch.zeros(self._size, dtype=x.dtype)]))
        return F.linear(x, w.ih, bias)

    def step(self, x: Tensor, states: _States, lanes: slice = _ALL) -> _States:
        (hidden,) = states
        gates, new = x[..., : -self._size], x[..., -self._size :]
        gates = torch.baddbmm(gates, hidden, self._gates[lanes])
        from_hidden = torch.bmm(hidden, self._new[lanes])
        if self._bias is not None:
            from_hidden = from_hidden + self._bias[lanes]
        settle_together(gates, from_hidden)
        r, z = torch.sigmoid(gates).chunk(2, -1)
        new = torch.tanh(new + r * from_hidden)
        return (new + z * (hidden - new),)


class _Rnn:
    """h' = activation(x + W h)"""

    def __init__(self, activation: Callable[[Tensor], Tensor], lanes: Sequence[_Weights]) -> None:
        self._activation, self._lanes = activation, lanes
        self._hh = torch.stack([w.hh for w in lanes]).transpose(1, 2)

    def inputs(self, lane: int, x: Tensor) -> Tensor:
        w = self._lanes[lane]
        return F.linear(x, w.ih, None if w.b_ih is None else _sum(w.b_ih, w.b_hh))

    def step(self, x: Tensor, states: _States, lanes: slice = _ALL) -> _States:
        return (self._activation(torch.baddbmm(x, states[0], self._hh[lanes])),)


_MakeCell = Callable[[Sequence[_Weights]], _Cell]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor:
    assert a is not None
    assert b is not None
    return a + b


# Layers -------------------------------------------------------------------------------------------------------


def _layer(
    cell: _Cell, x: Tensor, sizes: Sequence[int], states: _States, backwards: Tensor | None
) -> tuple[Tensor, _States]:
    """One layer over packed data (N, I), sizes[t] rows for step t: packed hidden states (N, D H), last states.

    ``backwards``: for two directions, where the second one finds its inputs.
    """
    contributions = [cell.inputs(0, x)]
    if backwards is not None:
        contributions.append(cell.inputs(1, x)[backwards])
    joined = torch.stack(contributions)
    hidden: list[Tensor] = []
    ended: list[_States] = []
    start = 0
    for size, remaining in zip(sizes, [*sizes[1:], 0], strict=True):
        states = cell.step(joined[:, start : start + size], states)
        hidden.append(states[0])
        start += size
        if remaining < size:
            ended.append(tuple(state[:, remaining:] for state in states))
            states = tuple(state[:, :remaining] for state in states)
    output = torch.cat(hidden, 1)
    last = tuple(torch.cat(parts, 1) for parts in zip(*reversed(ended), strict=True))
    if backwards is None:
        return output[0], last
    return torch.cat([output[0], output[1][backwards]], -1), last


def _layers_at_once(
    cell: _Cell, x: Tensor, length: int, states: _States, between: Callable[[Tensor], Tensor]
) -> tuple[Tensor, _States]:
    """All layers of one direction over (length * B, I): the last one's hidden states (length * B, H), last states.

    Layer l does step t while layer l + 1 does step t - 1, so length + layers - 1 steps wait for one another.
    ``between`` is applied to what goes from one layer to the next.
    """
    layers, batch = states[0].shape[:2]
    contributions = cell.inputs(0, x).reshape(length, batch, -1)
    now = tuple(state[:1] for state in states)
    below: Tensor | None = None
    hidden: list[Tensor] = []
    ended: list[_States] = []
    for tick in range(length + layers - 1):
        low, high = max(0, tick + 1 - length), min(tick, layers - 1)
        given = [contributions[tick]] if low == 0 else []
        if below is not None:
            # ``below`` starts at the first layer that worked in the last tick.
            first = max(0, tick - length)
            given += [cell.inputs(layer, between(below[layer - 1 - first])) for layer in range(max(low, 1), high + 1)]
        now = cell.step(torch.stack(given), now, slice(low, high + 1))
        below = now[0]
        if high == layers - 1:
            hidden.append(below[-1])
        if tick + 1 >= length:
            ended.append(tuple(state[:1] for state in now))
            now = tuple(state[1:] for state in now)
        if tick + 1 < layers:
            fresh = (state[tick + 1 : tick + 2] for state in states)
            now = tuple(torch.cat(pair) for pair in zip(now, fresh, strict=True))
    return torch.cat(hidden), tuple(torch.cat(parts) for parts in zip(*ended, strict=True))


def _network(
    make: _MakeCell,
    x: Tensor,
    sizes: Sequence[int],
    states: _States,
    parameters: Sequence[Tensor],
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, _States]:
    """All layers over packed data (N, I): the last one's hidden states (N, D H), all layers' last states."""
    directions = 2 if bidirectional else 1
    each = len(parameters) // (layers * directions)
    weights = [_Weights.of(parameters[i : i + each], biases) for i in range(0, len(parameters), each)]

    def between(hidden: Tensor) -> Tensor:
        return F.dropout(hidden, dropout, train) if dropout and train else hidden

    if layers > 1 and not bidirectional and sizes[0] == sizes[-1]:
        return _layers_at_once(make(weights), x, len(sizes), states, between)
    backwards = _backwards(sizes) if bidirectional else None
    ends: list[_States] = []
    for layer in range(layers):
        here = slice(layer * directions, (layer + 1) * directions)
        x, last = _layer(
            make(weights[here]), between(x) if layer else x, sizes, tuple(state[here] for state in states), backwards
        )
        ends.append(last)
    return x, tuple(torch.cat(parts) for parts in zip(*ends, strict=True))


def _backwards(sizes: Sequence[int]) -> Tensor:
    """For each row of packed data, the row of the same sequence as far from its end as this one is from its start."""
    step, place = _positions(sizes)
    lengths = torch.tensor([sum(size > j for size in sizes) for j in range(sizes[0])])
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    return starts[lengths[place] - 1 - step] + place


def _positions(sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The time step and the sequence of each row of packed data, (N,) each."""
    steps = [torch.full((size,), t) for t, size in enumerate(sizes)]
    return torch.cat(steps), torch.cat([torch.arange(size) for size in sizes])


def _function(make: _MakeCell, several: bool) -> Callable[..., tuple[Tensor, ...]]:
    """The secret-shared version of torch.lstm and its kin; ``several`` for a tuple of states, as an LSTM has."""

    def run(x: Tensor, second: Any, third: Any, *settings: Any) -> tuple[Tensor, ...]:
        if isinstance(second, Tensor) and not second.is_floating_point():
            # (data, batch_sizes, hx, parameters, biases, layers, dropout, train, bidirectional)
            parameters, *rest = settings
            states = tuple(third) if several else (third,)
            output, last = _network(make, x, second.tolist(), states, parameters, *rest)
            return output, *last
        # (input, hx, parameters, biases, layers, dropout, train, bidirectional, batch_first)
        *rest, batch_first = settings
        steps = x.transpose(0, 1) if batch_first else x
        length, batch = steps.shape[:2]
        if not length:
            raise InvalidTensor(f"an input of shape {tuple(x.shape)} has no time step; expected one at least")
        states = tuple(second) if several else (second,)
        packed = steps.reshape(length * batch, steps.shape[2])
        output, last = _network(make, packed, [batch] * length, states, third, *rest)
        output = output.view(length, batch, output.shape[1])
        return (output.transpose(0, 1) if batch_first else output), *last

    return run


def _cell_function(make: _MakeCell, several: bool) -> Callable[..., Any]:
    """The secret-shared version of torch.lstm_cell and its kin: one step of a batch (B, I)."""

    def run(
        x: Tensor, hx: Any, ih: Tensor, hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Tensor | _States:
        cell = make([_Weights(ih, hh, b_ih, b_hh, None)])
        states = tuple(state[None] for state in (hx if several else (hx,)))
        after = tuple(state[0] for state in cell.step(cell.inputs(0, x)[None], states))
        return after if several else after[0]

    return run


# Packed sequences ---------------------------------------------------------------------------------------------


def pack(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """torch._pack_padded_sequence: the rows that are within the public lengths, and how many each step has."""
    steps = x.transpose(0, 1) if batch_first else x
    known = lengths.tolist()
    if len(known) != steps.shape[1] or not all(0 < n <= steps.shape[0] for n in known):
        raise InvalidTensor(
            f"lengths {known} for {steps.shape[1]} sequences of at most {steps.shape[0]} steps: expected one length "
            "from 1 to that for each"
        )
    if known != sorted(known, reverse=True):
        raise InvalidTensor(f"lengths {known}: expected in decreasing order, or enforce_sorted=False")
    sizes = [sum(n > t for n in known) for t in range(known[0])]
    return steps[_positions(sizes)], torch.tensor(sizes)


def unpack(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """torch._pad_packed_sequence: the inverse of ``pack``, padded to ``total_length`` steps if that is positive."""
    sizes: list[int] = batch_sizes.tolist()
    length = total_length if total_length > 0 else len(sizes)
    room = data.new_full((length, sizes[0], *data.shape[1:]), padding_value)
    padded = room.index_put(_positions(sizes), data)
    lengths = torch.tensor([sum(size > j for size in sizes) for j in range(sizes[0])])
    return (padded.transpose(0, 1) if batch_first else padded), lengths


def _rnn_of(activation: Callable[[Tensor], Tensor]) -> _MakeCell:
    return lambda lanes: _Rnn(activation, lanes)


_TANH, _RELU = _rnn_of(torch.tanh), _rnn_of(torch.relu)
_torch: Any = torch
aten = torch.ops.aten


def _named(function: Callable[..., Any], *names: Any) -> dict[Any, Callable[..., Any]]:
    return dict.fromkeys(names, function)


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **_named(_function(_Lstm, several=True), _torch.lstm, aten.lstm.input, aten.lstm.data),
    **_named(_function(_Gru, several=False), _torch.gru, aten.gru.input, aten.gru.data),
    **_named(_function(_TANH, several=False), _torch.rnn_tanh, aten.rnn_tanh.input, aten.rnn_tanh.data),
    **_named(_function(_RELU, several=False), _torch.rnn_relu, aten.rnn_relu.input, aten.rnn_relu.data),
    **_named(_cell_function(_Lstm, several=True), _torch.lstm_cell, aten.lstm_cell.default),
    **_named(_cell_function(_Gru, several=False), _torch.gru_cell, aten.gru_cell.default),
    **_named(_cell_function(_TANH, several=False), _torch.rnn_tanh_cell, aten.rnn_tanh_cell.default),
    **_named(_cell_function(_RELU, several=False), _torch.rnn_relu_cell, aten.rnn_relu_cell.default),
    **_named(pack, _torch._pack_padded_sequence, aten._pack_padded_sequence.default),
    **_named(unpack, _torch._pad_packed_sequence, aten._pad_packed_sequence.default),
}
"""By the names that modules call them by, and those that an exported graph has."""
