"""encml: train one PyTorch model together, and use it, without showing each other the data."""

import importlib as _importlib
import typing as _typing

__all__ = [
    "CheckError",
    "Session",
    "SharedTensor",
    "UnsupportedOperation",
    "check",
    "join_columns",
    "join_rows",
    "profile",
    "reveal",
    "reveal_statistics",
    "share",
    "standardize",
]
__version__ = "0.1.0"

if _typing.TYPE_CHECKING:
    from encml import optim as optim
    from encml.errors import CheckError, UnsupportedOperation
    from encml.inspect import check, profile
    from encml.mpc.session import Session
    from encml.tensor import SharedTensor, join_columns, join_rows, reveal, reveal_statistics, share, standardize
else:
    _HOMES = {
        "CheckError": "encml.errors",
        "Session": "encml.tensor.api",
        "SharedTensor": "encml.tensor",
        "UnsupportedOperation": "encml.errors",
        "check": "encml.inspect",
        "join_columns": "encml.tensor",
        "join_rows": "encml.tensor",
        "profile": "encml.inspect",
        "reveal": "encml.tensor",
        "reveal_statistics": "encml.tensor",
        "share": "encml.tensor",
        "standardize": "encml.tensor",
    }

    def __getattr__(name: str) -> object:
        """Load a public name when it is first used (PEP 562): ``encml --help`` need not wait seconds for PyTorch."""
        if name == "optim":
            return _importlib.import_module("encml.optim")
        if name not in _HOMES:
            raise AttributeError(f"module 'encml' has no attribute {name!r}")
        value = globals()[name] = getattr(_importlib.import_module(_HOMES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
