"""What the reports of all kinds of experiments have in common: the page, its figures, its tables of costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from encml.errors import ConfigError
from encml.experiment.folder import CONFIG
from encml.experiment.metrics import Batch, OperationCost
from encml.experiment.text import bytes_text, milliseconds_text, seconds_text

_TEMPLATES = {
    "page.html.j2": "encml.experiment",
    "report.html.j2": "encml.experiment",
    "training.html.j2": "encml.experiment.training",
}
"""The page and what fills it, with the packages that they lie in."""
_OPERATIONS = 12


def page(template: str, metrics: Any, path: Path, **values: Any) -> str:
    """The HTML of one kind's report; ``metrics`` has the fields that both kinds have. Raises ConfigError."""
    sources = {name: (files(package) / name).read_text(encoding="utf-8") for name, package in _TEMPLATES.items()}
    environment = Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    longest = max(metrics.seconds.values(), default=0.0) or 1.0
    return environment.get_template(template).render(
        title=f"{metrics.experiment}: encml run report",
        metrics=metrics,
        when=f"{metrics.started.astimezone():%d %B %Y, %H:%M}",
        phases=[
            {"name": name, "seconds": seconds_text(value), "width": round(100 * value / longest, 1)}
            for name, value in metrics.seconds.items()
        ],
        total_seconds=seconds_text(sum(metrics.seconds.values())),
        config=_read_text(path / CONFIG),
        **values,
    )


def figure(name: str, value: str, note: str) -> dict[str, str]:
    """One of the large figures at the head of the page."""
    return {"name": name, "value": value, "note": note}


def batch_rows(batches: Iterable[Batch]) -> list[dict[str, object]]:
    """The rows of a table of requests, one for each batch size."""
    return [
        {
            "batch_size": batch.batch_size,
            "requests": batch.requests,
            "ms": milliseconds_text(batch.ms_per_image),
            "rounds": batch.rounds,
            "bytes": bytes_text(batch.bytes_per_party / batch.batch_size),
        }
        for batch in batches
    ]


def operation_table(title: str, note: str, costs: Sequence[OperationCost]) -> dict[str, Any]:
    """A table of what each operation cost, the dearest first, with bars."""
    return {
        "title": title,
        "note": note,
        "rows": _rows(costs),
        "total": _row(_sum("Total", costs), 1, 1),
        "timed": any(cost.calls for cost in costs),
    }


def _rows(costs: Sequence[OperationCost]) -> list[dict[str, Any]]:
    rest = costs[_OPERATIONS:]
    shown = [*costs[:_OPERATIONS], *([_sum(f"{len(rest)} others", rest)] if rest else [])]
    most_bytes = max(cost.bytes_per_party for cost in shown) or 1
    most_rounds = max(cost.rounds for cost in shown) or 1
    return [_row(cost, most_bytes, most_rounds) for cost in shown]


def _row(cost: OperationCost, most_bytes: float, most_rounds: int) -> dict[str, Any]:
    return {
        "name": cost.operation,
        "calls": f"{cost.calls:,}",
        "bytes": bytes_text(cost.bytes_per_party),
        "bytes_width": round(100 * cost.bytes_per_party / most_bytes, 1),
        "rounds": f"{cost.rounds:,}",
        "rounds_width": round(100 * cost.rounds / most_rounds, 1),
        "seconds": seconds_text(cost.seconds),
    }


def _sum(name: str, costs: Iterable[OperationCost]) -> OperationCost:
    costs = list(costs)
    return OperationCost(
        operation=name,
        calls=sum(cost.calls for cost in costs),
        rounds=sum(cost.rounds for cost in costs),
        bytes_per_party=sum(cost.bytes_per_party for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
