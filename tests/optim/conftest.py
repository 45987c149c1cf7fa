"""Every test has an in-process session of its own; the references of the tensor tests are importable here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from encml import Session

for room in ("tensor", "mpc"):
    sys.path.append(str(Path(__file__).parents[1] / room))


@pytest.fixture(autouse=True)
def session() -> Iterator[Session]:
    """The current session of the test, with reproducible masks."""
    with Session(seed=11) as current:
        yield current
