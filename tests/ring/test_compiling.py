"""Kernels where no folder can be written: numba then has nowhere to keep what it compiles."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import numba.core.caching as caching

def refused(self):
    raise OSError("read-only")

for locator in caching.CacheImpl._locator_classes:
    locator.ensure_cache_path = refused
import numpy as np
from encml.ring.kernels.elementwise import add_masked
own = np.array([1, 2])
add_masked(np.array([10, 20]), own, np.array([3, 4]))
print(own.tolist(), add_masked.stats.cache_path)
"""


def test_without_a_folder_for_the_cache_kernels_are_compiled_all_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout.split() == ["[8,", "18]", "None"]
