"""Activations and errors of a model's layers, caught while an ordinary loop runs it forwards and backwards.

Weight gradients of the caught layers are not computed: while a layer runs, its parameters require none. What takes
their place is worked out from what was caught (encml.privacy.per_example).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from encml.errors import PrivacyError
from encml.privacy.layers import Layer


class Pass:
    """One forward pass of the model: what went into each layer, and what came back to it."""

    def __init__(self) -> None:
        self.activations: dict[Layer, Tensor] = {}
        self.errors: dict[Layer, Tensor] = {}
        self.examples = 0


class Capture:
    """Hooks on ``model`` and on the modules of ``layers`` that catch each pass whose gradients flow back.

    scaled: the loss is a mean over the batch; errors are those of the sum.
    """

    def __init__(self, model: nn.Module, layers: Sequence[tuple[nn.Module, Layer]], *, scaled: bool) -> None:
        self._scaled = scaled
        self._running: Pass | None = None
        self._caught: list[Pass] = []
        self._layers = [layer for _, layer in layers]
        self._anchor = torch.empty(0, requires_grad=True)
        self._handles: list[RemovableHandle] = [model.register_forward_pre_hook(self._start)]
        for module, layer in layers:
            self._handles.append(module.register_forward_pre_hook(self._before(layer)))
            self._handles.append(module.register_forward_hook(self._after(layer), always_call=True))
        self._handles.append(model.register_forward_hook(self._end, always_call=True))

    def __repr__(self) -> str:
        return f"Capture({self._layers})"

    def take(self) -> Pass:
        """The one pass whose gradients have come back since the last time. Raises PrivacyError if it is not one."""
        caught, self._caught = self._caught, []
        if len(caught) != 1:
            raise PrivacyError(
                f"{len(caught)} passes of the model have had a backward since the last step: call the model once with "
                "a batch, then backward() once, then step(), so that no example counts twice"
            )
        missing = [layer.name for layer in self._layers if layer not in caught[0].errors]
        if missing:
            raise PrivacyError(
                f"no gradient came back to {', '.join(missing)}: the loss does not depend on it; use all layers, or "
                "freeze those with requires_grad_(False)"
            )
        return caught[0]

    def forget(self) -> None:
        """Let go of everything caught."""
        self._caught = []

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _start(self, model: nn.Module, inputs: Any) -> None:
        self._running = Pass() if torch.is_grad_enabled() else None

    def _end(self, model: nn.Module, inputs: Any, output: Any) -> Any:
        running, self._running = self._running, None
        if running is None or output is None or not self._scaled:
            return None
        if not isinstance(output, Tensor):
            raise PrivacyError(
                f"the model gives a {type(output).__name__}; for the mean of a batch's losses it must give one tensor "
                "(with loss_reduction='sum' it may give anything)"
            )
        return _times(output, running.examples)

    def _before(self, layer: Layer) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not torch.is_grad_enabled():
                return
            running = self._running
            if running is None:
                raise PrivacyError(
                    f"{layer.name} was called outside of the model that training was made private for; call that model"
                )
            if layer in running.activations:
                raise PrivacyError(
                    f"{layer.name} was used twice in one pass: per-example clipping supports one use of each layer"
                )
            x = inputs[0]
            if x.ndim < layer.least_dims:
                raise PrivacyError(
                    f"{layer.name} got an input of shape {tuple(x.shape)}: expected a batch, examples first, of "
                    f"{layer.least_dims} dimensions at least"
                )
            if running.activations and len(x) != running.examples:
                raise PrivacyError(
                    f"{layer.name} got {len(x)} rows in a batch of {running.examples} examples: the first dimension "
                    "must be that of the examples in every layer"
                )
            running.examples = len(x)
            running.activations[layer] = x.detach()
            for p in layer.parameters:
                p.requires_grad_(False)

        return hook

    def _after(self, layer: Layer) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            for p in layer.parameters:
                p.requires_grad_(True)
            running = self._running
            if output is None or running is None or layer not in running.activations:
                return None

            def keep(gradient: Tensor) -> None:
                if layer in running.errors:
                    raise PrivacyError(
                        "a second backward through the same pass: every example may count once; call the model again "
                        "after step()"
                    )
                if running not in self._caught:
                    self._caught.append(running)
                running.errors[layer] = gradient.detach()

            if output.requires_grad:
                output.register_hook(keep)
                return None
            return _kept(output, self._anchor, keep)

        return hook


class _Kept(torch.autograd.Function):
    """A tensor that needs no gradient, made to need one that is caught."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, keep: Callable[[Tensor], None]) -> Tensor:
        ctx.keep = keep
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.keep(gradient)
        return None, None, None


class _Times(torch.autograd.Function):
    """A tensor as it is, its gradient times a whole number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> Tensor:
        ctx.count = count
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.count, None


def _kept(x: Tensor, anchor: Tensor, keep: Callable[[Tensor], None]) -> Tensor:
    result: Tensor = _Kept.apply(x, anchor, keep)  # type: ignore[no-untyped-call]
    return result


def _times(x: Tensor, count: int) -> Tensor:
    result: Tensor = _Times.apply(x, count)  # type: ignore[no-untyped-call]
    return result
