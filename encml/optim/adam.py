"""Adam and AdamW for secret parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from encml.errors import InvalidTensor, UnsupportedOperation
from encml.mpc.session import Session
from encml.optim import moments
from encml.tensor.secret import Secret, settle_all
from encml.tensor.shared import SharedTensor, secret

_MEAN, _SQUARE, _LARGEST = "scaled_mean", "scaled_square", "scaled_largest_square"


class Adam(torch.optim.Optimizer):
    """torch.optim.Adam for SharedTensors, with its arguments: drop-in for training on secrets.

    params: SharedTensors, or dicts of parameter groups. Plain parameters are refused: torch.optim.Adam trains them.
    lr, betas, weight_decay, amsgrad, maximize: as in torch.optim.Adam; learning-rate schedulers work as they do there.
    eps: joins under the root, lr * m / sqrt(v + eps^2), which differs from PyTorch's lr * m / (sqrt(v) + eps) where a
        gradient is about as small as eps. No less than 2^-25 of ``gradient_range`` (1e-6). Gradients below the
        session's 2^-f are half rounding: an eps of that size keeps steps from following it.
    gradient_range: the largest |gradient| of an element that makes sense, rounded up to a power of two, 2^-8 to 2^8;
        gradients beyond it are clipped to it. Squares are kept with 54 bits for this range: elements whose gradients
        are always below 2^-21 of it (1.5e-5; with amsgrad, 2^-18) have too large a root, and so smaller steps.

    What a step costs: 50 rounds however many parameters a group has (60 with amsgrad), and 310 B a party and parameter
    (345 with amsgrad). Nothing is revealed. Parameters of a group whose numbers of steps differ take rounds of their
    own.

    The state is secret: ``scaled_mean`` and ``scaled_square`` in units of gradient_range, bias-corrected (see
    encml.optim.moments); state_dict and torch.save hold shares. A state_dict of torch.optim.Adam does not load.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        gradient_range: float = 32.0,
        decoupled_weight_decay: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "gradient_range": gradient_range, "decoupled_weight_decay": decoupled_weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See torch.optim.Optimizer. Raises ValueError for settings out of range, UnsupportedOperation for plain
        parameters."""
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See torch.optim.Optimizer. Raises InvalidTensor for the state of another optimizer."""
        wanted = {"step", _MEAN, _SQUARE}
        for state in state_dict["state"].values():
            if not wanted <= state.keys():
                raise InvalidTensor(
                    f"expected the state of encml.optim.Adam ({', '.join(sorted(wanted))}), found "
                    f"{', '.join(sorted(map(str, state)))}: state of torch.optim.Adam has other units"
                )
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient. ``closure``, if given, computes the loss again."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_steps: dict[int, list[SharedTensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    steps = int(self.state[parameter].get("step", 0)) + 1
                    by_steps.setdefault(steps, []).append(parameter)
            for steps, parameters in by_steps.items():
                self._update(group, steps, parameters)
        return loss

    def _update(self, group: dict[str, Any], steps: int, parameters: list[SharedTensor]) -> None:
        session = parameters[0].session
        if any(parameter.session is not session for parameter in parameters):
            raise InvalidTensor("the parameters of one group belong to different sessions; share them in one")
        with session.whole(), session.ledger.operation(type(self).__name__):
            states = [self.state[parameter] for parameter in parameters]
            values, new_states = _step(session, group, steps, parameters, states)
        for parameter, state, value, new in zip(parameters, states, values, new_states, strict=True):
            state.update(new)
            state["step"] = torch.tensor(float(steps))
            parameter.copy_(value)


class AdamW(Adam):
    """torch.optim.AdamW for SharedTensors: Adam whose weight decay does not enter the moments. See ``Adam``."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        gradient_range: float = 32.0,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            gradient_range=gradient_range,
            decoupled_weight_decay=True,
        )


_Values = list[SharedTensor]


def _step(
    session: Session,
    group: dict[str, Any],
    steps: int,
    parameters: list[SharedTensor],
    states: list[dict[str, Any]],
) -> tuple[_Values, list[dict[str, SharedTensor]]]:
    """The parameters' new values, and their new moments."""
    parties, f = session.parties, session.fraction_bits
    beta1, beta2 = (float(beta) for beta in group["betas"])
    range_bits = _range_bits(group)
    lr, decay, amsgrad = float(group["lr"]), float(group["weight_decay"]), bool(group["amsgrad"])
    decoupled = bool(group["decoupled_weight_decay"])

    secrets = [secret(parameter) for parameter in parameters]
    scaled = [_scaled(parameter, moments.GRADIENT_BITS - range_bits) for parameter in parameters]
    settle_all(*secrets)
    value = _flat(secrets, f)
    begin: list[Callable[[], Any]] = [partial(settle_all, *scaled)]
    if decay and not decoupled:
        more = moments.GRADIENT_BITS - range_bits - f
        begin.append(partial(moments.times, parties, value, -decay if group["maximize"] else decay, more))
    _, *added = parties.together(*begin)
    gradient = sum(added, _flat(scaled, f))
    gradient = moments.clipped(parties, -gradient if group["maximize"] else gradient)

    names = (_MEAN, _SQUARE, *((_LARGEST,) if amsgrad else ()))
    known = states[0]
    zeros = torch.zeros_like(gradient)
    mean, square, *rest = (
        _flat([secret(state[name]) for state in states], f) if name in known else zeros for name in names
    )
    correction = 1 - beta2**steps
    weights = ((1 - beta1) / (1 - beta1**steps), 1 - beta2 if amsgrad else (1 - beta2) / correction)
    mean, square = parties.together(
        partial(moments.first_moment, parties, mean, gradient, weights[0]),
        partial(moments.second_moment, parties, square, gradient, weights[1]),
    )
    kept, eps = [mean, square], float(group["eps"]) * math.ldexp(1, -range_bits)
    if amsgrad:
        # The largest of uncorrected squares, as in PyTorch; corrected afterwards.
        square = moments.largest(parties, square, rest[0]) if steps > 1 else square
        kept.append(square)
        lr, eps = lr * math.sqrt(correction), eps * math.sqrt(correction)
    toward = moments.direction(parties, mean, square, eps)
    jobs = [partial(moments.times, parties, toward, -lr, f - moments.DIRECTION_BITS)]
    if decay and decoupled:
        jobs.append(partial(moments.times, parties, value, -float(group["lr"]) * decay))
    for change in parties.together(*jobs):
        value = value + change
    new = [_apart(session, flat, parameters) for flat in kept]
    return _apart(session, value, parameters), [
        dict(zip(names, parts, strict=True)) for parts in zip(*new, strict=True)
    ]


def _scaled(parameter: SharedTensor, bits: int) -> Secret:
    """The gradient in units of 2^-bits, as a secret that, settled, has them as ring units at f fraction bits."""
    session, gradient = parameter.session, parameter.grad
    assert gradient is not None
    held = secret(gradient) if isinstance(gradient, SharedTensor) else Secret.of_public(session, gradient)
    left = held.fraction_bits - bits + session.fraction_bits
    terms = held.terms if left >= 0 else held.terms << -left
    return Secret(session, max(left, 0), **{"rows" if held.pending else "payload": terms})


def _flat(secrets: list[Secret], fraction_bits: int) -> Tensor:
    """Settled secrets as one payload (S, n)."""
    whole = [held.settle().at_bits(fraction_bits) for held in secrets]
    return torch.cat([terms.reshape(len(terms), terms.shape[1:].numel()) for terms in whole], 1)


def _apart(session: Session, flat: Tensor, like: list[SharedTensor]) -> _Values:
    """The inverse of ``_flat``, as SharedTensors of the parameters' shapes."""
    parts = torch.split(flat, [parameter.numel() for parameter in like], 1)
    return [
        SharedTensor(
            Secret(session, session.fraction_bits, payload=part.reshape(len(flat), *parameter.shape)), parameter.dtype
        )
        for part, parameter in zip(parts, like, strict=True)
    ]


def _range_bits(group: dict[str, Any]) -> int:
    """rho: the range of gradients is 2^rho."""
    return math.ceil(math.log2(float(group["gradient_range"])))


def _check_group(group: dict[str, Any]) -> None:
    for name, allowed in (("lr", "0 or more"), ("eps", "0 or more"), ("weight_decay", "0 or more")):
        if not 0 <= float(group[name]) < math.inf:
            raise ValueError(f"{name}: found {group[name]}, expected {allowed}")
    if not all(0 <= float(beta) < 1 for beta in group["betas"]) or len(group["betas"]) != 2:
        raise ValueError(f"betas: found {group['betas']}, expected two from 0 to below 1")
    if not 2**-8 <= float(group["gradient_range"]) <= 2**8:
        raise ValueError(f"gradient_range: found {group['gradient_range']}, expected 2^-8 to 2^8")
    for parameter in group["params"]:
        if not isinstance(parameter, SharedTensor):
            raise UnsupportedOperation(
                f"encml.optim.Adam trains SharedTensors, found a plain parameter of shape {tuple(parameter.shape)}: "
                "share the model before the optimizer is made, or train it with torch.optim.Adam"
            )
