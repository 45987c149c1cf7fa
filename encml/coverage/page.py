"""The measured table as a page of the documentation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from encml.coverage.kinds import KINDS
from encml.coverage.reasons import Reason, Reasons
from encml.coverage.results import Aspect, Operator, Status, Table

WORDS: dict[Status, str] = {
    "yes": "yes",
    "partly": "partly",
    "no": "no",
    "wrong": "wrong",
    "defect": "error",
    "none": "-",
}


_INTRODUCTION = """\
Which of PyTorch's operators work on secrets, how precise they are, and what they cost. Measured on the sample calls of
PyTorch's own database of operators (`torch.testing._internal.common_methods_invocations.op_db`), with numbers that
{bits} fraction bits hold, against float64: with the first float argument secret, with all of them, and with all but the
first; values, gradients for random upstream gradients, and the form that works in place. `encml ops` shows the same
table; this page is written by

```sh
encml ops --measure --json encml/coverage/measured.json --markdown docs/operators.md
```"""

_READING = """\
In the tables below, *partly* means that some of the sample calls are right and the others refused: which ones stands at
the end. *Error* is the worst one met: in units of the last place (1 ulp = 2^-f) where the exact value is below 1/8, as
a part of the value from there on; where a formula multiplies rounded parts by large inputs, their errors grow with it.
*Rounds* and *bytes* are those of the largest sample call with all arguments secret, the result settled: bytes that a
party sends for each element of the result (of the inputs, for gradients). Samples are small, so what does not depend on
the size weighs more than in a model."""


def error_text(aspect: Aspect) -> str:
    """The worst error: "exact", "0.9 ulp", "2^-12", or both."""
    if aspect.right == 0:
        return ""
    parts = [f"{aspect.ulps:.2g} ulp"] if aspect.ulps else []
    if aspect.relative > 2.0**-40:
        parts.append(f"2^{math.ceil(math.log2(aspect.relative))}")
    return ", ".join(parts) or "exact"


def cost_text(aspect: Aspect) -> tuple[str, str]:
    """Rounds, and bytes a party and element."""
    if aspect.right == 0:
        return "", ""
    return str(aspect.rounds), f"{aspect.bytes:.3g}" if aspect.bytes < 1000 else f"{aspect.bytes:.0f}"


def summary(table: Table, reasons: Reasons) -> list[tuple[str, int]]:
    """What is counted, and how many operators it is."""
    within = [o for o in table.operators if (reason := reasons.of(o.name)) is None or reason.in_scope]
    works = [o for o in within if o.works]
    differentiable = [o for o in works if o.gradient.status != "none"]
    return [
        ("operators of the database that take floats", len(table.operators)),
        ("of these make no sense on secrets", len(table.operators) - len(within)),
        ("in scope", len(within)),
        ("in scope and supported", len(works)),
        ("every sample call", sum(o.value.status == "yes" for o in works)),
        ("some of them, the others refused", sum(o.value.status == "partly" for o in works)),
        ("differentiable ones among the supported", len(differentiable)),
        ("their gradients supported", sum(o.gradient.status in ("yes", "partly") for o in differentiable)),
        ("in scope and refused", sum(o.value.status in ("no", "none") for o in within)),
        ("in scope and wrong, or failing with another error", sum(_fails(o) for o in within)),
    ]


def problems(table: Table, reasons: Reasons) -> list[str]:
    """What is neither supported nor refused for a reason that is written down; reasons for what is supported."""
    found = [f"{o.name}: {aspect.message}" for o in table.operators for aspect in _aspects(o) if _bad(aspect)]
    found += [f"{o.name}: refused without a reason" for o in table.operators if not o.works and not reasons.of(o.name)]
    exact = {name for reason in reasons.reasons for name in reason.operators}
    return found + [
        f"{o.name}: supported, but there is a reason why not" for o in table.operators if o.works and o.name in exact
    ]


def markdown(table: Table, reasons: Reasons) -> str:
    """The whole page."""
    lines = [
        "# Operators",
        "",
        *_INTRODUCTION.format(bits=table.fraction_bits).splitlines(),
        "",
        f"encml {table.encml}, PyTorch {table.torch}, {table.date}, {table.fraction_bits} fraction bits.",
        "",
        "| | operators |",
        "| --- | ---: |",
        *(f"| {what} | {count} |" for what, count in summary(table, reasons)),
        "",
        *_READING.splitlines(),
    ]
    for kind in KINDS:
        chosen = [o for o in table.operators if o.kind == kind and o.works]
        if chosen:
            lines += ["", f"## {kind}", "", *_rows(chosen)]
    lines += ["", "## Supported in part", ""]
    lines += [
        f"- `{o.name}`: {_sentence(aspect.message)}"
        for o in table.operators
        for aspect in [next((a for a in (o.value, o.gradient) if a.status == "partly"), None)]
        if o.works and aspect is not None
    ]
    for title, in_scope in (("Refused", True), ("Of no sense on secrets", False)):
        lines += ["", f"## {title}", ""]
        for reason in reasons.reasons:
            names = _named(table.operators, reason, reasons)
            if reason.in_scope == in_scope and names:
                lines += [f"- {', '.join(f'`{name}`' for name in names)}: {reason.reason}"]
    return "\n".join(lines) + "\n"


def _rows(operators: Sequence[Operator]) -> Iterable[str]:
    yield "| operator | value | gradient | in place | error | rounds | bytes | backward: error | rounds | bytes |"
    yield "| --- | --- | --- | --- | --- | ---: | ---: | --- | ---: | ---: |"
    for o in operators:
        star = " *" if o.random else ""
        cells = [f"`{o.name}`{star}", WORDS[o.value.status], WORDS[o.gradient.status], WORDS[o.in_place.status]]
        cells += [error_text(o.value), *cost_text(o.value), error_text(o.gradient), *cost_text(o.gradient)]
        yield "| " + " | ".join(cells) + " |"
    if any(o.random for o in operators):
        yield ""
        yield "\\* draws random numbers, or leaves memory as it is: only shapes and dtypes are compared."


def _named(operators: Sequence[Operator], reason: Reason, reasons: Reasons) -> list[str]:
    return [o.name for o in operators if not o.works and reasons.of(o.name) is reason]


def _aspects(operator: Operator) -> tuple[Aspect, ...]:
    return operator.value, operator.gradient, operator.in_place


def _bad(aspect: Aspect) -> bool:
    return aspect.status in ("wrong", "defect")


def _fails(operator: Operator) -> bool:
    return any(_bad(aspect) for aspect in _aspects(operator))


def _sentence(message: str) -> str:
    """A message on one line, and without a table's separators."""
    return " ".join(message.replace("|", "\\|").split())
