"""Shared with the tests of the engine: sessions, three parties in threads, comparison with float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from encml import Session

sys.path += [str(Path(__file__).parents[1] / room) for room in ("mpc", "tensor")]


@pytest.fixture
def session() -> Iterator[Session]:
    """The current session of the test, with reproducible masks."""
    with Session(seed=11) as current:
        yield current
