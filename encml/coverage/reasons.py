"""Why an operator of the database is not supported, for those that make no sense on secrets or are not there."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from encml.config.loading import Config, load_yaml

FILE = Path(__file__).with_name("reasons.yaml")


class Reason(Config):
    """Operators, by name or pattern, and why they are not supported. ``scope``: whether they could make sense."""

    reason: str
    in_scope: bool
    operators: tuple[str, ...]


class Reasons(Config):
    """The whole file."""

    reasons: tuple[Reason, ...]

    def of(self, name: str) -> Reason | None:
        """The reason for one operator; exact names come before patterns."""
        for reason in self.reasons:
            if name in reason.operators:
                return reason
        for reason in self.reasons:
            if any(fnmatchcase(name, pattern) for pattern in reason.operators):
                return reason
        return None


@cache
def load_reasons() -> Reasons:
    """The reasons that come with the package."""
    return load_yaml(FILE, Reasons)
