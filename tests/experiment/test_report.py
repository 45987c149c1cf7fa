"""The report: everything in one file, every figure from metrics.json, wrong images marked."""

from __future__ import annotations

import base64
import io
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from encml.config import ExperimentConfig
from encml.config.loading import check
from encml.errors import ConfigError
from encml.experiment.folder import RunFolder
from encml.experiment.metrics import (
    Batch,
    Data,
    Failure,
    Inference,
    Metrics,
    OperationCost,
    Privacy,
    Round,
    environment,
    operation_costs,
    read_metrics,
)
from encml.experiment.report import FIRST_IMAGES, select_images
from encml.experiment.run import make_report
from encml.experiment.text import bytes_text, milliseconds_text, seconds_text
from encml.net.ledger import Cost


def metrics(unit: str = "example", inference: bool = True) -> Metrics:
    private = unit != "none"
    now = datetime.now(UTC)
    rounds = tuple(
        Round(
            round=number,
            selected=5,
            accepted=5 - (number == 2),
            failed=(Failure(client="client-3", reason="its <b>disk</b> was full"),) if number == 2 else (),
            accuracy=0.9 + number / 100,
            epsilon=number / 10 if private else None,
            uploaded=1_000_000,
            released=24_000,
            protocol_rounds=57,
            bytes_per_party=90_000.0,
            training_seconds=1.0,
            aggregation_seconds=0.25,
            testing_seconds=0.25,
        )
        for number in (1, 2, 3)
    )
    costs = operation_costs({"relu": Cost(10, (3000, 3000, 3000), 0.5, 3), "reveal": Cost(1, (8, 8, 8), 0.0, 1)})
    batches = (
        Batch(batch_size=1, requests=20, ms_per_image=41.23, rounds=42, bytes_per_party=182_000.0),
        Batch(batch_size=64, requests=16, ms_per_image=12.3, rounds=42, bytes_per_party=11.6e6),
    )
    return Metrics(
        experiment="report-test",
        started=now,
        finished=now,
        resumed=(2,),
        seconds={"data": 0.5, "training": 61.0, "inference": 40.0},
        data=Data(source="a test", train_images=50, test_images=100, clients=5),
        rounds=rounds,
        accuracy=0.9312,
        privacy=Privacy(
            unit=unit,  # type: ignore[arg-type]
            epsilon=0.3 if private else None,
            delta=1e-5 if private else None,
            noise_multiplier=1.1 if private else None,
            sentence="What is protected, in a sentence.",
        ),
        aggregation=costs,
        inference=Inference(
            transport="tls",
            images=100,
            agreeing=100,
            accuracy=0.97,
            plain_accuracy=0.97,
            batches=batches,
            costs=costs,
        )
        if inference
        else None,
        environment=environment("1.0"),
    )


def finished_run(base: Path, figures: Metrics) -> Path:
    values = {
        "experiment": "report-test",
        "data": {"clients": 5},
        "federated": {"strategy": "fedavg", "rounds": 3, "learning_rate": 0.1},
        "privacy": {"unit": "none"},
        "output": {"folder": str(base)},
    }
    with RunFolder.create(check(values, ExperimentConfig, "test"), "1.0") as folder:
        labels = torch.arange(100) % 10
        predicted = labels.clone()
        predicted[[5, 70, 80]] = (labels[[5, 70, 80]] + 1) % 10
        images = torch.randint(0, 256, (100, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        folder.write("classified.safetensors", select_images(images, labels, predicted))
        folder.finish(figures.model_dump_json(indent=2).encode())
    return folder.path


class Page(HTMLParser):
    """Collects what a browser would fetch, what is left open, and the visible text."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.wrong = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action") and not str(value).startswith(("data:", "#")):
                self.fetched.append(str(value))
            self.wrong += (tag, name, value) == ("figure", "class", "wrong")
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_in_one_file(tmp_path: Path) -> None:
    text = make_report(finished_run(tmp_path, metrics())).read_text(encoding="utf-8")
    page = Page(text)
    assert page.fetched == []
    assert page.open == []
    assert not re.search(r"https?:|@import|url\((?!#)", text)


def test_headline_figures_stand_in_it(tmp_path: Path) -> None:
    page = Page(make_report(finished_run(tmp_path, metrics())).read_text(encoding="utf-8"))
    for expected in (
        "93.12 %",
        "0.30",
        "for one example, δ = 1e-5",
        "100 of 100 images",
        "41.2 ms",
        "12.3 ms",
        "182 kB",
    ):
        assert expected in page.text
    for expected in (
        "What is protected, in a sentence.",
        "Interrupted and resumed after round 2",
        "clients: 5",
        "1:42 min",
    ):
        assert expected in page.text
    assert page.text.count("relu") == 2


def test_names_from_outside_are_text_not_markup(tmp_path: Path) -> None:
    text = make_report(finished_run(tmp_path, metrics())).read_text(encoding="utf-8")
    assert "its <b>disk</b> was full" not in text
    assert "its <b>disk</b> was full" in Page(text).text


def test_wrong_images_are_marked_and_right_ones_are_not(tmp_path: Path) -> None:
    path = finished_run(tmp_path, metrics())
    text = make_report(path).read_text(encoding="utf-8")
    assert Page(text).wrong == 4  # the one among the first, and all three in their own group
    assert text.count("<img ") == FIRST_IMAGES + 3
    uri = re.search(r'data:image/png;base64,([^"]*)', text)
    assert uri is not None
    picture = imread(io.BytesIO(base64.b64decode(uri[1])), format="png")
    original = torch.randint(0, 256, (100, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))[0]
    assert torch.equal((torch.tensor(picture[..., 0]) * 255).round().to(torch.uint8), original)


@pytest.mark.parametrize(("unit", "inference"), [("none", True), ("client", False), ("none", False)])
def test_runs_without_privacy_or_inference_have_a_report_too(tmp_path: Path, unit: str, inference: bool) -> None:
    page = Page(make_report(finished_run(tmp_path, metrics(unit, inference))).read_text(encoding="utf-8"))
    assert ("Private inference" in page.text) == inference
    assert ("Epsilon spent" in page.text) == (unit != "none")


def test_metrics_read_back_equal_and_damage_is_named(tmp_path: Path) -> None:
    figures = metrics()
    path = finished_run(tmp_path, figures)
    assert read_metrics(path, Metrics) == figures
    values = json.loads((path / "metrics.json").read_text())
    assert values["schema_version"] == 1
    assert values["inference"]["batches"][0] == {
        "batch_size": 1,
        "requests": 20,
        "ms_per_image": 41.23,
        "rounds": 42,
        "bytes_per_party": 182_000.0,
    }
    (path / "metrics.json").write_text(json.dumps(values | {"accuracy": 7}))
    with pytest.raises(ConfigError, match="damaged, or of another version"):
        read_metrics(path, Metrics)
    (path / "metrics.json").unlink()
    with pytest.raises(ConfigError, match="--resume"):
        read_metrics(path, Metrics)
    with pytest.raises(ConfigError, match="no run folder"):
        read_metrics(tmp_path, Metrics)


def test_a_report_is_made_anew_from_its_folder(tmp_path: Path) -> None:
    path = finished_run(tmp_path, metrics())
    first = make_report(path).read_bytes()
    (path / "report.html").unlink()
    assert make_report(path).read_bytes() == first
    (path / "classified.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="missing or damaged"):
        make_report(path)


def test_costs_come_in_the_order_of_their_bytes() -> None:
    costs = operation_costs({"a": Cost(1, (1, 2, 3)), "b": Cost(5, (30, 30, 30), 0.25, 2)})
    assert costs[0] == OperationCost(operation="b", calls=2, rounds=5, bytes_per_party=30.0, seconds=0.25)
    assert [cost.operation for cost in costs] == ["b", "a"]


def test_figures_for_people() -> None:
    assert [bytes_text(x) for x in (0, 950, 12_345, 4.56e6, 3.2e9)] == ["0 B", "950 B", "12.3 kB", "4.56 MB", "3.2 GB"]
    assert [seconds_text(x) for x in (0.0, 0.0001, 0.0123, 0.0996, 0.2345, 3.44, 42.4, 125.2, 119.6)] == [
        "0 ms",
        "< 1 ms",
        "12 ms",
        "100 ms",
        "234 ms",
        "3.4 s",
        "42 s",
        "2:05 min",
        "2:00 min",
    ]
    assert [milliseconds_text(x) for x in (0.5, 41.23, 234.5)] == ["0.5 ms", "41.2 ms", "234 ms"]
