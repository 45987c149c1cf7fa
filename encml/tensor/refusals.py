"""What is refused, and what to do instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NoReturn

from encml.errors import SecretError, UnsupportedOperation

ADVICE = "call reveal() to open it to all parties first, if that is what you mean"

_FOREACH = "leave foreach and fused at their defaults; foreach=True works for SGD and for clipping gradients"
_NOISE = "noise that all parties would know hides nothing; let one party draw it, and share() it"
_FRACTIONAL = "its windows are drawn at random, by each party anew; use max_pool2d or adaptive_max_pool2d"
_COUNT = "how many elements it gives would show; multiply by the mask, or use torch.where"

_ADVICE = {
    **dict.fromkeys(("fractional_max_pool2d", "fractional_max_pool3d"), _FRACTIONAL),
    **dict.fromkeys(("rand_like", "randn_like", "randint_like", "bernoulli", "multinomial", "poisson"), _NOISE),
    **dict.fromkeys(("normal", "uniform", "random", "exponential", "cauchy", "geometric", "log_normal"), _NOISE),
    "native_dropout": "use F.dropout",
    **dict.fromkeys(("nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "unique_dim"), _COUNT),
    "mode": "count with F.one_hot(x, classes).sum(0), and take the argmax of the counts",
    "embedding_renorm": "leave max_norm out, and scale the rows of the weight yourself",
}


def refuse_values(*_: object, **__: object) -> NoReturn:
    """Stands for whatever would turn a secret into a plain value."""
    raise SecretError(f"a SharedTensor's values are not visible; {ADVICE}")


def refuse_truth(*_: object) -> NoReturn:
    """Stands for bool(), and so for if, while, and, or, not."""
    raise SecretError(f"the truth of a secret cannot steer plain Python code; {ADVICE}")


def refuse_pickling(*_: object) -> NoReturn:
    """Stands for whatever would send a secret to another process."""
    raise SecretError(
        "a SharedTensor is not pickled or sent to another process, for its shares belong to different parties; "
        "torch.save() writes those of this party to a file"
    )


def unsupported(func: Any, known: Iterable[Any]) -> Exception:
    """The error for an aten operator without a handler, with advice or else the nearest of the ``known`` operators."""
    name = str(func).removeprefix("aten.")
    base, _, overload = name.partition(".")
    if any("out" in part.split("_") for part in (base, overload)) or base == "set_":
        return SecretError(
            f"{base}: a secret cannot be written to a plain tensor; use the form that returns its result"
        )
    advice = _ADVICE.get(base) or _ADVICE.get(base.rstrip("_"))
    if base.startswith("_foreach") or base.startswith("_fused"):
        advice = _FOREACH
    if advice is None:
        names = sorted({str(op).removeprefix("aten.").split(".")[0] for op in known})
        near = difflib.get_close_matches(base.strip("_"), names, n=3, cutoff=0.6)
        advice = f"nearest supported: {', '.join(near)}" if near else "encml/tensor/table/ lists what is supported"
    return UnsupportedOperation(f"{name} has no secret-shared version: {advice}")
