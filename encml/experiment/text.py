"""Figures as people read them, in the report and on the terminal."""

from __future__ import annotations

from encml.experiment.metrics import Inference


def inference_sentence(inference: Inference) -> str:
    """How the private inference compares with the plain one."""
    where = {
        "tls": "Three party processes, connected by mutual TLS, classified shares",
        "in_process": "Three parties in one process (the protocol without its privacy) classified shares",
    }[inference.transport]
    right, plain = 100 * inference.accuracy, 100 * inference.plain_accuracy
    return (
        f"{where} of the first {inference.images:,} test images. {inference.agreeing:,} of them got the class that "
        f"plain PyTorch gives them; {right:.2f} % are right, {plain:.2f} % in plain PyTorch."
    )


def bytes_text(count: float) -> str:
    """A number of bytes for people: 950 B, 12.3 kB, 4.56 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def seconds_text(seconds: float) -> str:
    """A duration for people: 12 ms, 234 ms, 3.4 s, 2:05 min."""
    if 0 < seconds < 0.00095:
        return "< 1 ms"
    if seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms"
    if 0.0995 <= seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d} min"


def milliseconds_text(value: float) -> str:
    """A time per image: 12.3 ms."""
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
