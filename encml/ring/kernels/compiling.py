"""How inner loops are compiled: at their first use, without the interpreter's lock, and kept for later processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """The function in machine code, which numba keeps beside the source or in the user's cache, whichever it may write.

    Where it may write neither (a read-only image without a home), every process compiles anew what it uses: seconds.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)
