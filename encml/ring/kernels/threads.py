"""Work split over as many threads as torch is allowed to use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

_WORTH_A_THREAD = 4_000_000
"""Products of integers, 0.2 ms; a thread takes 0.1 ms to start."""


def in_parts(count: int, step: int, work: int, job: Callable[[int, int], None]) -> None:
    """job(start, stop) over parts of range(count), cut at multiples of ``step``, side by side on several cores.

    work: products of integers in all, by which it is decided whether threads are worth their while; as many as
    ``torch.get_num_threads()`` are used. The jobs write to different places and release the interpreter's lock.
    """
    pieces = -(-count // step)
    threads = min(torch.get_num_threads(), pieces, work // _WORTH_A_THREAD)
    if threads < 2:
        job(0, count)
        return
    edges = [min(count, part * pieces // threads * step) for part in range(threads + 1)]
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(job, *ends) for ends in pairwise(edges[1:])]
        job(edges[0], edges[1])
        for other in others:
            other.result()
