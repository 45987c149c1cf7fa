"""Shared with the tests of the engine: three parties in threads, each with only its own shares."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "mpc"))
