"""How much memory something takes, as the operating system counts it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"
"""Written to clear_refs: set the peak of the resident set back to what is resident now (man 5 proc)."""


@contextmanager
def peak_memory() -> Iterator[list[int | None]]:
    """The yielded list receives the peak of the resident set inside the block, in bytes above that at its start.

    Memory that the allocator keeps of what was freed before is given back to the system first; otherwise the block
    would use it unseen. So inputs, weights and libraries are not counted, and everything that the block touches at the
    same time is, whoever allocated it: PyTorch, NumPy, TLS. None where the system is not Linux, or does not allow it.
    """
    result: list[int | None] = []
    gc.collect()
    _trim()
    before = _resident("VmRSS") if _reset() else None
    yield result
    peak = _resident("VmHWM")
    result.append(None if before is None or peak is None else max(0, peak - before))


def _trim() -> None:
    with suppress(OSError, AttributeError):  # only the GNU C library has it
        ctypes.CDLL(None).malloc_trim(0)


def _reset() -> bool:
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _resident(field: str) -> int | None:
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return 1024 * int(value.split()[0])
    return None
