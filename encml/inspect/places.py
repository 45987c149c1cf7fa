"""Where in a model a computation is: the module whose forward runs, or whose part of backward.

Forward hooks say which module is at work. What autograd runs in backward belongs to a node of its graph; when a module
returns, the nodes between its inputs and its outputs that no inner module has claimed are its own, and tell when they
run. Full backward hooks of nn.Module would do as well, but they put views around inputs and outputs, which in-place
modules (``nn.ReLU(inplace=True)``) refuse.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_OUTSIDE_BACKWARD = -1
_OURS = tuple(f"{folder}/" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))


@dataclass(frozen=True, slots=True)
class Place:
    """``module``: its qualified name in the model, "" for the model itself, None outside of it."""

    module: str | None
    backward: bool


class Places:
    """Follows the modules of ``model`` through forward and backward, while ``followed``."""

    def __init__(self, model: nn.Module | None) -> None:
        self._names = {} if model is None else {module: name for name, module in model.named_modules()}
        self.classes = {name: type(module).__name__ for module, name in self._names.items()}
        """Qualified name -> class, in the order of the model."""
        self._stack: list[Place] = []
        self._sources: list[set[Any]] = []
        self._active = False

    @property
    def here(self) -> Place:
        """Where the computation is now."""
        backward = _in_backward()
        while not backward and self._stack and self._stack[-1].backward:
            self._stack.pop()  # left over by a backward that ended in an error
        module = self._stack[-1].module if self._stack else None
        return Place(module, backward)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Put hooks on the modules; they are gone when the block ends."""
        with ExitStack() as hooks:
            for module in self._names:
                hooks.enter_context(module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
            self._active = True
            try:
                yield
            finally:
                self._active = False
                self._stack.clear()
                self._sources.clear()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._stack.append(Place(self._names[module], _in_backward()))
        self._sources.append(_nodes((args, kwargs)) if torch.is_grad_enabled() else set())

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        place, sources = self._stack.pop(), self._sources.pop()
        waiting = list(_nodes(output))
        while waiting:
            node = waiting.pop()
            if node not in sources:
                sources.add(node)
                self._claim(node, place.module)
                waiting += [before for before, _ in node.next_functions if before is not None]

    def _claim(self, node: Any, module: str | None) -> None:
        """The node tells when it runs, unless it does so already: it keeps what is in its ``metadata`` for life."""
        if self in node.metadata:
            return
        node.metadata[self] = module

        def begin(*_: object) -> None:
            if self._active:
                self._stack.append(Place(module, backward=True))

        def end(*_: object) -> None:
            if self._active and self._stack and self._stack[-1].backward:
                self._stack.pop()

        node.register_prehook(begin)
        node.register_hook(end)


def user_line() -> str:
    """The innermost line of Python that runs outside of PyTorch and encml: where an operation was called from."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (frame.f_code.co_filename.startswith((*_OURS, "<frozen", "<eval_with_key"))):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(file, line).strip()
    return f"{file}:{line}" + (f": {text}" if text else "")


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != _OUTSIDE_BACKWARD


def _nodes(values: Any) -> set[Any]:
    """The nodes of autograd's graph that made the tensors among ``values``, nested ones too."""
    return {x.grad_fn for x in tree_leaves(values) if isinstance(x, Tensor) and x.grad_fn is not None}
