"""Memory that was freed stays with the process.

A protocol takes and frees some arrays a round. glibc hands what is free at the end of its heap back to the system once
it is twice the largest array, and the next round pays for every page anew: more than for all the arithmetic (measured:
1,100 page faults, 3.4 of 4.5 ms, for one party's part in a comparison of 100,000 numbers).
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM, _MAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""
_KEPT = 256 << 20
_MAPPED = 32 << 20


def keep_freed() -> None:
    """Let up to 256 MiB of freed memory stay with this process; arrays of 32 MiB and more go back when they are freed.

    Only with glibc, and not where MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_ in the environment says otherwise.
    """
    if sys.platform != "linux" or {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM, _KEPT)
        mallopt(_MAP, _MAPPED)
