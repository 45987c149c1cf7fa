"""The cases over three processes of this machine, which talk TLS with keys made for this once, near or far."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from encml.bench.case import Case
from encml.bench.line.laying import LaidLine
from encml.bench.measuring import together
from encml.bench.records import Observed, PartyLine, Run
from encml.net.certificates import make_cluster_keys
from encml.net.transport import PARTIES
from encml.serving.processes import LocalParties, local_config

_TIMEOUT = 120.0
"""Seconds without progress; longer than any computation between two messages, on a busy machine too."""


def run_parties(
    cases: Sequence[Case], quick: bool, repeats: int, threads: int, line: LaidLine | None = None
) -> Iterator[tuple[Case, Run | str]]:
    """Each case and what came out, as soon as all three parties are done with it; see ``measure``.

    ``line``: what lies between the parties; nothing but loopback without one. The processes end with the generator,
    whatever ends it. Raises PartyError, with the end of its log, for a party that fails.
    """
    with tempfile.TemporaryDirectory(prefix="encml-bench-") as name:
        folder = Path(name)
        config = local_config(folder, threads=threads, timeout=_TIMEOUT, connect_timeout=_TIMEOUT)
        module, arguments = "encml.bench.party", ["--results", name, "--cases", ",".join(case.name for case in cases)]
        arguments += ["--repeats", str(repeats), *(["--quick"] if quick else [])]
        if line is not None:
            config, module, arguments = line.between(config), line.entry, [*line.arguments, *arguments]
        make_cluster_keys(config.keys, [party.host for party in config.parties], clients=(), days=1)
        parties = LocalParties(config, module, arguments)
        try:
            for rank in range(PARTIES):
                parties.start(rank)
            readers = [parties.lines(folder / f"party-{rank}.jsonl") for rank in range(PARTIES)]
            for case in cases:
                zero, one, two = (PartyLine.model_validate_json(next(reader)).outcome for reader in readers)
                if isinstance(zero, Observed) and isinstance(one, Observed) and isinstance(two, Observed):
                    yield case, together((zero, one, two))
                else:
                    yield case, next(outcome for outcome in (zero, one, two) if isinstance(outcome, str))
        finally:
            parties.stop()
