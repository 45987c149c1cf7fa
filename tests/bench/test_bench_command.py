"""``encml bench`` as a person meets it: tables, files, mistakes, other libraries, Ctrl-C."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from encml.bench import beside
from encml.bench.beside import PEERS, Interpreter, parse_peer, run_peer
from encml.bench.cases import BY_NAME, choose
from encml.bench.measuring import measure
from encml.bench.processes import run_parties
from encml.bench.records import Benchmark, Peer, Run
from encml.cli.app import app
from encml.errors import ConfigError
from encml.experiment.text import bytes_text
from encml.mpc.session import Session
from encml.net.local import LocalTransport

MARK = "ENCML_TEST_MARK"


def bench(*words: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", *map(str, words)])


def refused(*words: str | Path) -> str:
    result = bench(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path, Path]:
    folder = tmp_path_factory.mktemp("bench")
    figures, page = folder / "bench.json", folder / "bench.md"
    words = ["--quick", "--in-process", "--only", "relu", "--only", "mat*layer", "--repeats", 3]
    return bench(*words, "--json", figures, "--markdown", page), figures, page


def test_json_has_the_figures_and_the_machine(small_run: tuple[Result, Path, Path]) -> None:
    result, figures, _ = small_run
    assert result.exit_code == 0, result.output
    found = Benchmark.model_validate_json(figures.read_text())
    assert [case.name for case in found.cases] == ["relu", "matmul-layer"]
    assert (found.repeats, found.quick, found.only) == (3, True, ("relu", "mat*layer"))
    raw = json.loads(figures.read_text())
    named = {"cpu", "cores", "memory_bytes", "threads", "encml", "commit", "python", "packages", "system"}
    assert set(raw["machine"]) == named
    relu = raw["cases"][0]
    assert relu["declared"]["rounds"] == relu["in_process"]["rounds"] == 10
    assert relu["declared"]["bytes_per_party"] == pytest.approx(relu["in_process"]["bytes_per_party"])
    assert len(relu["in_process"]["seconds"]) == 3
    assert relu["parties"] is None
    if sys.platform == "linux":
        assert raw["machine"]["cpu"]
        assert 0 <= raw["busy_cores"] < raw["machine"]["cores"] + 1
        assert relu["in_process"]["peak_bytes"] is not None


def test_tables_name_each_case(small_run: tuple[Result, Path, Path]) -> None:
    result, figures, page = small_run
    sent = json.loads(figures.read_text())["cases"][0]["in_process"]["bytes_per_party"]
    for text in (result.stdout, page.read_text()):
        assert "ReLU of 1,000" in text
        assert "matrix product 8 × 49 × 8" in text
        assert bytes_text(sent) in text
        assert "the same" in text
    assert "encml bench --only relu --only 'mat*layer' --quick --in-process" in " ".join(page.read_text().split())
    assert max(map(len, (line for line in page.read_text().splitlines() if not line.startswith("|")))) <= 120


def test_wrong_words_say_what_to_do(tmp_path: Path) -> None:
    message = refused("--only", "matmull")
    assert "no case is called that" in message
    assert all(name in message for name in BY_NAME)
    assert "expected NAME=PYTHON, where NAME is one of crypten, spu" in refused("--peer", "mpspdz=/bin/sh")
    assert "is no program" in refused("--peer", f"spu={tmp_path}/python")
    assert "leave --in-process out" in refused("--in-process", "--peer", f"spu={sys.executable}")
    assert "there is no folder" in refused("--only", "round", "--json", tmp_path / "no" / "bench.json")


def test_three_processes_cost_what_one_does() -> None:
    cases = choose(["relu", "matmul-layer"])
    for case, outcome in run_parties(cases, quick=True, repeats=2, threads=1):
        with Session(LocalTransport()) as session:
            alone = measure(case, session, quick=True, repeats=1)
        assert isinstance(outcome, Run)
        assert isinstance(alone, Run)
        assert (outcome.rounds, outcome.bytes_per_party) == (alone.rounds, pytest.approx(alone.bytes_per_party))
        assert outcome.worst_error is not None
        assert outcome.worst_error < 2.0**-12
        assert len(outcome.seconds) == 2


def test_ctrl_c_leaves_no_process_behind() -> None:
    mark = secrets.token_hex(8)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "encml",
            "bench",
            "--parties",
            "--quick",
            "--repeats",
            "300",
            "--only",
            "product",
            "--only",
            "relu",
        ],
        env=os.environ | {MARK: mark, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stderr is not None
        log = next((line for line in process.stderr if "over TLS: product" in line), None)
        assert log is not None
        assert len(marked(mark)) == 4
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert marked(mark) == []


def marked(mark: str) -> list[int]:
    """Processes that carry the mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


# Other libraries ---------------------------------------------------------------------------------------------------

SCRIPT = """
import json, os, subprocess, sys, time
order = json.loads(sys.argv[1])
def say(record): print(json.dumps(record), flush=True)
say({"version": "7", "setting": "a stand-in"})
"""
ANSWER = "say({'name': case['name'], 'seconds': [2.0] * order['repeats'], 'bytes_per_party': 5, 'worst_error': 0.5})"


def stand_in(body: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Peer:
    """What the benchmark makes of a script that is not really another library's."""
    (folder / "other_cases.py").write_text(SCRIPT + body)
    monkeypatch.setattr(beside, "SCRIPTS", folder)
    told: list[str] = []
    peer = Interpreter("other", Path(sys.executable))
    found = run_peer(peer, choose(["relu", "exp"]), quick=True, repeats=3, threads=1, told=told.append)
    assert told == [case.name for case in (*found.cases, *found.failures)]
    return found


def test_a_peers_figures_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = stand_in(f"for case in order['cases']: {ANSWER}", tmp_path, monkeypatch)
    assert (found.version, found.setting, found.problem) == ("7", "a stand-in", None)
    assert [(case.name, case.seconds, case.bytes_per_party) for case in found.cases] == [
        ("relu", (2.0, 2.0, 2.0), 5),
        ("exp", (2.0, 2.0, 2.0), 5),
    ]


def test_a_peer_is_told_sizes_and_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "for case in order['cases']: say({'name': case['name'], 'problem': json.dumps(case)})"
    found = stand_in(body, tmp_path, monkeypatch)
    assert json.loads(found.failures[0].problem) == {"name": "relu", "size": [1000], "domain": None}
    assert json.loads(found.failures[1].problem) == {"name": "exp", "size": [100], "domain": [-8.0, 8.0]}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (f"case = order['cases'][0]; {ANSWER}; sys.exit('out of memory')", "out of memory"),
        ("say({'name': 'relu'})", "something else than figures"),
        ("print('hello')", "something else than figures"),
    ],
)
def test_a_peer_that_fails_says_how_far_it_came(
    body: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = stand_in(body, tmp_path, monkeypatch)
    assert found.problem is not None
    assert problem in found.problem


def test_a_silent_peer_is_ended_with_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = secrets.token_hex(8)
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setattr(beside, "_CASE_SECONDS", 2.0)
    body = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)']); time.sleep(100)"
    found = stand_in(body, tmp_path, monkeypatch)
    assert found.problem is not None
    assert [pid for pid in marked(mark) if pid != os.getpid()] == []


def test_peers_scripts_stand_by_themselves() -> None:
    assert PEERS == ("crypten", "spu")
    for name in PEERS:
        text = (beside.SCRIPTS / f"{name}_cases.py").read_text()
        assert "import encml" not in text
        assert "from encml" not in text
        assert all(f'"{case}"' in text for case in ("relu", "matmul-layer", "exp", "reciprocal", "sqrt", "seed-64"))


def test_interpreters_are_found(tmp_path: Path) -> None:
    assert parse_peer(f"spu={sys.executable}") == Interpreter("spu", Path(sys.executable))
    with pytest.raises(ConfigError, match="is no program"):
        parse_peer(f"spu={tmp_path}")
