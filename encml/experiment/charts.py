"""The report's charts: small SVGs that take their colours from the page, so that they follow light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from encml.privacy.text import epsilon_text

# What matplotlib draws in these colours, the page draws in its own.
_INK, _GRID, _BLUE, _ORANGE, _GREEN = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "ink", _GRID: "grid", _BLUE: "blue", _ORANGE: "orange", _GREEN: "green"}

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "encml",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def accuracy_chart(rounds: Sequence[int], accuracy: Sequence[float]) -> str:
    """Accuracy on the test images (0 to 1) after each round, as inline SVG."""
    figure, axes = _figure()
    _line(axes, rounds, accuracy, _BLUE)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    low = min(accuracy)
    axes.set_ylim(max(0.0, low - 0.08 * (1 - low)), 1.0)
    _annotate(axes, rounds, accuracy, f"{100 * accuracy[-1]:.2f} %")
    return _svg(figure, "Accuracy on the test images by round")


def epsilon_chart(rounds: Sequence[int], epsilon: Sequence[float]) -> str:
    """Epsilon spent by each round, as inline SVG."""
    figure, axes = _figure()
    _line(axes, rounds, epsilon, _ORANGE)
    axes.set_ylim(0, max(epsilon) * 1.15 or 1)
    _annotate(axes, rounds, epsilon, epsilon_text(epsilon[-1]))
    return _svg(figure, "Epsilon spent by round")


def clients_chart(rounds: Sequence[int], accepted: Sequence[int], failed: Sequence[int]) -> str:
    """Clients accepted and left out in each round, stacked, as inline SVG."""
    figure, axes = _figure()
    axes.bar(rounds, accepted, color=_GREEN, width=0.75, label="accepted")
    if any(failed):
        axes.bar(
            rounds, failed, bottom=accepted, color=_ORANGE, width=0.75, hatch="////", edgecolor=_INK, label="left out"
        )
        _legend(axes)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(rounds[0] - 0.6, rounds[-1] + 0.6)
    return _svg(figure, "Clients accepted and left out by round")


def seconds_chart(rounds: Sequence[int], seconds: Sequence[float]) -> str:
    """Seconds that each round took, as inline SVG."""
    figure, axes = _figure()
    axes.bar(rounds, seconds, color=_BLUE, width=0.75)
    axes.yaxis.set_major_formatter("{x:g} s")
    axes.set_xlim(rounds[0] - 0.6, rounds[-1] + 0.6)
    return _svg(figure, "Seconds by round")


Curve = Sequence[tuple[int, float]]
"""Step and value."""


def accuracy_curves(secret: Curve, plain: Curve) -> str:
    """Accuracy (0 to 1) by step, on secrets beside plaintext (empty: alone), as inline SVG."""
    figure, axes = _figure("step")
    if len(secret) > 2:
        # What the first weights give would leave no room for what is learned.
        plain = [(step, value) for step, value in plain if step >= secret[0][0]]
    _curves(axes, secret, plain)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    low = min(value for _, value in [*secret, *plain])
    axes.set_ylim(max(0.0, low - 0.08 * (1 - low)), 1.0)
    if secret:
        _annotate(axes, [step for step, _ in secret], [value for _, value in secret], f"{100 * secret[-1][1]:.2f} %")
    return _svg(figure, "Accuracy on the test images by step")


def loss_curves(secret: Curve, plain: Curve) -> str:
    """The loss of a step's batch by step, on secrets beside plaintext (empty: alone), as inline SVG."""
    figure, axes = _figure("step")
    _curves(axes, secret, plain)
    axes.set_ylim(0, 1.05 * max(value for _, value in [*secret, *plain]))
    return _svg(figure, "Loss of the batch by step")


def _curves(axes: Axes, secret: Curve, plain: Curve) -> None:
    for curve, colour, style, name in ((plain, _ORANGE, "--", "in plaintext"), (secret, _BLUE, "-", "on secrets")):
        if curve:
            axes.plot(
                [step for step, _ in curve],
                [value for _, value in curve],
                color=colour,
                linestyle=style,
                linewidth=2 if len(curve) < 40 else 1.2,
                marker="o",
                markersize=3.5 if len(curve) < 40 else 0,
                label=name,
            )
    axes.set_xlim(left=0)
    axes.legend(
        frameon=False, labelcolor=_INK, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1
    )


def _legend(axes: Axes) -> None:
    place: Any = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0)}
    axes.legend(frameon=False, labelcolor=_INK, ncols=2, borderaxespad=0.1, **place)


def _figure(across: str = "round") -> tuple[Figure, Axes]:
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        axes: Axes = figure.subplots()
    axes.set_xlabel(across)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    return figure, axes


def _line(axes: Axes, rounds: Sequence[int], values: Sequence[float], colour: str) -> None:
    axes.set_xlim(rounds[0] - 0.6, rounds[-1] + 0.6)
    axes.plot(rounds, values, color=colour, linewidth=2, marker="o", markersize=3.5 if len(rounds) < 40 else 0)


def _annotate(axes: Axes, rounds: Sequence[int], values: Sequence[float], text: str) -> None:
    axes.annotate(
        text,
        (rounds[-1], values[-1]),
        xytext=(0, -8),
        textcoords="offset points",
        ha="right",
        va="top",
        color=_INK,
        fontweight="bold",
    )


def _svg(figure: Figure, description: str) -> str:
    """The figure as an <svg> element of its own: no prologue, no metadata, no reference to anything outside."""
    buffer = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    if view is None:
        raise AssertionError("matplotlib's SVG has no viewBox")
    body = body.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg {view.group()} role="img" aria-label="{description}">{body}'
