"""SharedTensor: a torch.Tensor whose values are secret-shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import get_eval_frame_callback

from encml.errors import SecretError, UnsupportedOperation
from encml.mpc.session import Session
from encml.mpc.sharing import open_to, open_to_all
from encml.ring.devices import CPU
from encml.ring.fixed import decode
from encml.tensor.refusals import refuse_pickling, refuse_truth, refuse_values, unsupported
from encml.tensor.secret import Secret

_TRACING = torch._C._TorchDispatchModeKey.PROXY


class SharedTensor(torch.Tensor):
    """A tensor of secrets, held by three parties as replicated shares.

    It has a shape, strides and a logical dtype like any tensor (float32 or float64; bool for what a comparison gives;
    int64 for shared labels, indices and counts), and PyTorch's operators, autograd, modules and torch.optim.SGD work on
    it. Its values are seen only after ``reveal``. Make one with ``encml.share``. Operations not in the table raise
    UnsupportedOperation; whatever would turn a secret into a plain value raises SecretError.

    Numbers are multiples of 2^-f. Anything smaller is rounded at random to one of its neighbours, 0 on average right:
    gradients of a mean over many elements may be better off as those of a sum, with a smaller learning rate.
    Comparisons round public values as sharing does, so share(x) == x.

    Values must stay below 2^(62 - 2f) in magnitude, and so must the sums that means, poolings and products are made of:
    a mean of 65536 squares needs squares below 2^14 at f = 16. Averages that are not used in a product or a comparison
    yet should be added up below 2^(54 - 2f). Nobody can see a secret that leaves the range: the result is wrong without
    a sign. Scale the data first.

    Do not assign one to the ``data`` of a plain tensor: PyTorch gives no hook there and crashes when it is read.
    """

    _secret: Secret
    handlers: ClassVar[dict[Any, Callable[..., Any]]] = {}
    """aten operator -> its secret-shared version; filled from encml.tensor.table."""
    functions: ClassVar[dict[Any, Callable[..., Any]]] = {}
    """Python-level torch function -> its secret-shared version, for what must be caught above autograd."""
    patient: ClassVar[frozenset[Any]] = frozenset()
    """aten operators before which nothing that was put off is worked out."""

    @staticmethod
    def __new__(cls, secret: Secret, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> SharedTensor:
        terms = secret.terms
        tensor: SharedTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            terms.shape[1:],
            strides=terms.stride()[1:],
            dtype=dtype,
            device=CPU,
            requires_grad=requires_grad,
        )
        tensor._secret = secret
        return tensor

    # What it shows --------------------------------------------------------------------------------------------

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # untyped above
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"SharedTensor(shape={tuple(self.shape)}, dtype={self.dtype}{grad})"

    @property
    def session(self) -> Session:
        """The session whose parties hold the shares."""
        return self._secret.session

    def reveal(self, to: int | None = None) -> Tensor:
        """Open the values: they become known to every party, or with ``to`` to the party of that rank alone.

        Returns a plain tensor of the same shape and logical dtype. With ``to``, parties other than it get a tensor of
        zeros. 1 round, 8 bytes an element and party (in all, with ``to``), after settling a pending product. Gradients
        flow back through it into the secret graph as public values.
        """
        result: Tensor = _Reveal.apply(self, to)  # type: ignore[no-untyped-call]
        return result

    # How PyTorch reaches it -----------------------------------------------------------------------------------

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        own = cls.functions.get(func)
        if own is not None:
            catch_up((*args, *(kwargs or {}).values()))
            return own(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # the stub leaves out that it is a class method
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if torch.is_inference_mode_enabled():
            # A view of a tensor from outside must not be an inference tensor, as everything made in that mode is.
            with torch.inference_mode(False), torch.no_grad():
                return cls.__torch_dispatch__(func, types, args, kwargs)
        if get_eval_frame_callback() or torch._C._get_dispatch_mode(_TRACING) is not None:
            # A graph would hold masks as constants, and use them again.
            raise UnsupportedOperation(
                "SharedTensors are not traced or compiled: their operations are protocols between parties; leave "
                "torch.compile out, or put torch.compiler.disable around what works on them"
            )
        handler = cls.handlers.get(func)
        kwargs = kwargs or {}
        if handler is not None:
            session = _session_of((*args, *kwargs.values()))
            if session.later and func not in cls.patient:
                session.catch_up()
            with session.whole(), session.ledger.operation(func._schema.name.removeprefix("aten::")):
                return handler(*args, **kwargs)
        # Where autograd is off altogether (inference mode), composite operators arrive whole.
        result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise unsupported(func, cls.handlers)
        return result

    # What would leak ------------------------------------------------------------------------------------------

    __bool__ = refuse_truth
    __float__ = __int__ = __index__ = __complex__ = item = tolist = numpy = __array__ = refuse_values
    __contains__ = __dlpack__ = __dlpack_device__ = refuse_values
    __reduce_ex__ = refuse_pickling  # torch.save goes by encml.tensor.saving

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedTensor:
        if id(self) in memo:
            known: SharedTensor = memo[id(self)]
            return known
        if not self.is_leaf:
            raise UnsupportedOperation("only leaf SharedTensors can be deep-copied, as in PyTorch; detach() it first")
        with torch.no_grad():
            copy: Any = self.detach().clone()
        copy.requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        if isinstance(self.grad, SharedTensor):
            copy.grad = self.grad.__deepcopy__(memo)
        result: SharedTensor = copy
        return result


class _Reveal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: SharedTensor, to: int | None) -> Tensor:
        ctx.session, ctx.dtype = x.session, x.dtype
        held, parties = x._secret, x.session.parties
        with x.session.whole(), x.session.ledger.operation("reveal"):
            payload = held.payload
            if to is None:
                return decode(open_to_all(parties, payload), held.fraction_bits, x.dtype)
            opened = open_to(parties, payload, to)
        if opened is None:
            return torch.zeros(x.shape, dtype=x.dtype)
        return decode(opened, held.fraction_bits, x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[SharedTensor, None]:
        return SharedTensor(Secret.of_public(ctx.session, gradient), ctx.dtype), None


def secret(tensor: Tensor) -> Secret:
    """The secret that a SharedTensor carries."""
    if not isinstance(tensor, SharedTensor):
        raise SecretError(f"a plain tensor of shape {tuple(tensor.shape)} stands where a SharedTensor is needed")
    return tensor._secret


def around(value: Secret, like: Tensor, dtype: torch.dtype, stride: Sequence[int] | None = None) -> SharedTensor:
    """A SharedTensor like ``like``, or with other strides, around a secret that need not be there yet."""
    tensor: Any = torch.Tensor._make_wrapper_subclass(
        SharedTensor, like.shape, strides=like.stride() if stride is None else stride, dtype=dtype, device=CPU
    )
    tensor._secret = value
    result: SharedTensor = tensor
    return result


def catch_up(arguments: Sequence[Any]) -> None:
    """Work out what was put off in the sessions of the SharedTensors among the arguments."""
    for argument in arguments:
        for item in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(item, SharedTensor):
                item._secret.session.catch_up()


def _session_of(arguments: Sequence[Any]) -> Session:
    """The session of the first SharedTensor among the arguments, lists included."""
    for argument in arguments:
        for item in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(item, SharedTensor):
                return item._secret.session
    raise UnsupportedOperation("an operation got its SharedTensor nested where it is not looked for")
