"""How long the phases of a run took."""

from __future__ import annotations

import time


class Clock:
    """Seconds by phase, in the order in which the phases came."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Add to the phase ``name``."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def phase(self, name: str) -> _Running:
        """A context in which time counts for the phase ``name``."""
        return _Running(self, name)


class _Running:
    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._clock.add(self._name, time.perf_counter() - self._start)
