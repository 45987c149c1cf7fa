"""A protocol that runs again finds the memory of its last run: no page comes anew from the system."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

RUNS = 20
SCRIPT = f"""
import resource
import torch
from encml.mpc import comparison
from encml.mpc.parties import Parties
from encml.net.local import LocalTransport
torch.set_num_threads(1)
parties = Parties(LocalTransport())
x = torch.zeros((3, 100_000), dtype=torch.int64)
for _ in range(3):
    comparison.negative(parties, x)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({RUNS}):
    comparison.negative(parties, x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> float:
    """Page faults of a comparison of 100,000 numbers that has run before."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
        env={name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment,
    )
    return int(run.stdout) / RUNS


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc can be told to keep memory"
)
def test_freed_memory_stays_unless_the_environment_says_otherwise() -> None:
    assert faults() < 100
    assert faults(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072") > 1000
