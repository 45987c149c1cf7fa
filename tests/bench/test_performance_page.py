"""Goals, memory and distances as tables, and the page that they are put into."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from encml.bench.cases import BY_NAME
from encml.bench.goals import GOALS, PUBLISHED, goals_grid
from encml.bench.machine import this_machine
from encml.bench.performance import distance_grid, lines_grid, performance, predicted
from encml.bench.records import Benchmark, CaseRecord, Distance, DistantCase, Run
from encml.bench.text import memory_grid
from encml.cli.app import app
from encml.errors import ConfigError

A, B = "network-a-cross-entropy", "network-b-cross-entropy"
PAGE = "before\n" + "".join(
    f"<!-- {name}: written by encml bench -->\nold {name}\n<!-- end of {name} -->\nafter {name}\n"
    for name in ("goals", "memory", "distance")
)


def run(seconds: float, sent: float, rounds: float, peak: int = 0) -> Run:
    """A step that is given 1 MB and keeps 3 MB."""
    return Run(
        seconds=(seconds / 2, seconds, 2 * seconds),
        rounds=rounds,
        bytes_per_party=sent,
        peak_bytes=peak,
        worst_error=None,
        critical_bytes=2 * sent,
        given_bytes=10**6,
        kept_bytes=3 * 10**6,
    )


def case(name: str, parties: Run | None) -> CaseRecord:
    known = BY_NAME[name]
    return CaseRecord(
        name=name, group=known.group, does=known.title(False), size=known.size, declared=None, parties=parties
    )


def line(round_trip: float, bandwidth: float | None, cases: tuple[DistantCase, ...]) -> Distance:
    return Distance(
        round_trip=round_trip,
        bandwidth=bandwidth,
        made_by="router",
        congestion_control="cubic",
        measured_round_trip=round_trip * 1.01,
        measured_bandwidth=339e6 if bandwidth else 2.5e9,
        dropped=7,
        cases=cases,
    )


def benchmark(*cases: CaseRecord, distances: tuple[Distance, ...] = ()) -> Benchmark:
    return Benchmark(
        date=datetime(2026, 1, 2, tzinfo=UTC),
        only=(),
        quick=False,
        repeats=3,
        machine=this_machine(1),
        busy_cores=0.0,
        cases=cases,
        peers=(),
        distances=distances,
    )


def test_every_goal_has_a_case() -> None:
    assert {goal.case for goal in GOALS} <= set(BY_NAME)
    assert set(PUBLISHED) <= set(BY_NAME)


def test_goals_say_what_was_reached_and_by_how_much_one_was_missed() -> None:
    found = goals_grid(
        benchmark(
            case(A, run(0.08, 5e6, 120, peak=15 * 10**6)),
            case(B, run(0.08 * 11.65, 82e6, 999, peak=31 * 10**6)),
            case("relu", run(0.030, 34e5, 10)),
            case("seed-1", None),
        )
    )
    assert [row[1:] for row in found.rows] == [
        (
            "80.0 ms, 5 MB a party, 120 rounds, 4× its payload in memory",
            "80.0 ms, 5 MB, 120 rounds, 4.0×",
            "reached",
        ),
        ("25.0 ms, 34 B a value", "30.0 ms, 34 B", "1.2× seconds"),
        (
            "5.83 times network A's seconds, 82 MB a party, 4× its payload in memory",
            "11.7 times (932 ms), 82 MB, 8.0×",
            "2.0× seconds, 2.0× memory",
        ),
    ]


def test_memory_counts_what_a_step_was_given() -> None:
    found = run(1.0, 1.0, 1, peak=7 * 10**6)
    assert found.memory_ratio == 2
    assert found.model_copy(update={"peak_bytes": None}).memory_ratio is None
    (row,) = memory_grid(benchmark(case(A, found), case("relu", None))).rows
    assert row[2:] == ("1 MB", "3 MB", "8 MB", "2.0×")


def test_a_prediction_adds_round_trips_bytes_and_loopback() -> None:
    # 100 rounds of 20 ms, 2 · 4.4 MB at 44 MB/s, and 0.1 s.
    assert predicted(run(0.1, 4.4e6, 100), line(0.04, 352e6, ())) == pytest.approx(2 + 0.2 + 0.1)
    assert predicted(run(0.1, 4.4e6, 100), line(0.04, None, ())) == pytest.approx(2 + 0.1)


def test_distances_stand_beside_predictions_and_what_is_published() -> None:
    near, far = run(0.1, 4.4e6, 100), run(2.25, 4.4e6, 100)
    found = benchmark(
        case(A, near),
        case("relu", run(0.02, 1e6, 10)),
        case("softmax", run(0.02, 1e6, 10)),
        distances=(
            line(0.01, None, (DistantCase(name="relu", run=run(0.09, 1e6, 10)),)),
            line(0.04, 352e6, (DistantCase(name=A, run=far),)),
        ),
    )
    grid = distance_grid(found)
    assert grid.columns[5:9] == ("10 ms: predicted", "measured", "40 ms: predicted", "measured")
    first, second = grid.rows
    assert first[1:] == ("100", "4.4 MB", "8.8 MB", "100 ms", "600 ms", "", "2.30 s", "2.25 s", "9.70 s", "4.50 s")
    assert second[5:] == ("70.0 ms", "90.0 ms", "265 ms", "", "", "")
    assert lines_grid(found).rows == (
        ("10 ms", "router", "cubic", "10.1 ms", "no limit", "2.5 Gbit/s", "7"),
        ("40 ms", "router", "cubic", "40.4 ms", "352 Mbit/s", "339 Mbit/s", "7"),
    )


def test_only_tables_with_figures_are_replaced() -> None:
    found = benchmark(case(A, run(0.08, 5e6, 120)))
    page = performance(PAGE, found)
    assert page.startswith("before\n<!-- goals: written by encml bench -->\nMeasured on 2026-01-02, 3 repeats: ")
    assert "old goals" not in page
    assert "old memory" not in page
    assert "\nold distance\n<!-- end of distance -->\nafter distance\n" in page
    assert performance(page, found) == page


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs the lines <!-- goals: written by encml bench --> and"):
        performance("nothing", benchmark(case(A, run(0.08, 5e6, 120))))


def test_the_page_has_all_places() -> None:
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    found = line(0.04, 352e6, (DistantCase(name=A, run=run(2.25, 4.4e6, 100)),))
    performance(page, benchmark(case(A, run(0.08, 5e6, 120)), distances=(found,)))


# The command --------------------------------------------------------------------------------------------------------


def bench(*words: str | Path, columns: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, ["bench", *map(str, words)])


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    path = tmp_path / "figures.json"
    far = line(0.04, 352e6, (DistantCase(name=A, run=run(2.25, 4.4e6, 100)),))
    path.write_text(benchmark(case(A, run(0.08, 5e6, 120)), distances=(far,)).model_dump_json())
    return path


def test_figures_are_shown_again_without_measuring(figures: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    result = bench("--from", figures, "--goals", "--performance", page, columns=400)
    assert result.exit_code == 0, result.output
    assert "120 rounds" in result.stdout
    assert "TF-Encrypted" in result.stdout
    text = page.read_text()
    assert not any(f"old {name}" in text for name in ("goals", "memory", "distance"))


def test_a_narrow_terminal_gets_lines_with_whole_cells(figures: Path) -> None:
    shown = bench("--from", figures, "--goals", columns=80).stdout
    assert "┃" not in shown
    assert "80.0 ms (40.0–160)" in shown
    assert "40 ms: predicted: 2.71 s · measured: 2.25 s" in shown
    wide = bench("--from", figures, "--goals", columns=400).stdout
    assert "┃" in wide
    assert "80.0 ms (40.0–160)" in wide


def test_wrong_words_about_lines_and_files(tmp_path: Path) -> None:
    def refused(*words: str | Path) -> str:
        result = bench(*words)
        assert result.exit_code == 2, result.output
        return " ".join(result.stderr.split())

    assert "a line lies between processes" in refused("--in-process", "--round-trip", "10")
    assert "give its --round-trip, too" in refused("--bandwidth", "100")
    assert "cannot be read" in refused("--from", tmp_path / "nothing.json")
    (tmp_path / "other.json").write_text("{}")
    assert "not what encml bench --json writes" in refused("--from", tmp_path / "other.json")
