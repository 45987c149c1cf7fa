"""The three acts of experiments/private_prediction.py, each in its own process, as a reader would play them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from serving_support import alive

from encml.config.cluster import load_cluster
from encml.data import load_mnist, to_float
from encml.models import seed_network

ROOT = Path(__file__).parents[2]


def act(name: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        str(ROOT / "experiments" / "private_prediction.py"),
        name,
        "--folder",
        str(folder),
        *more,
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def told(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    return text


def test_three_acts(tmp_path: Path) -> None:
    assert "Saved" in told(act("train", tmp_path, "--train-images", "2000", "--epochs", "1"))
    serving = act("serve", tmp_path)
    try:
        assert serving.stdout is not None
        assert "Three workers serve 'mnist' for 3 requests" in serving.stdout.readline()
        lines = told(act("ask", tmp_path)).splitlines()
        found = [re.match(r"actual (\d), predicted (\d)", line) for line in lines]
        # The first three test images are a 7, a 2 and a 1.
        assert [match[1] for match in found if match] == ["7", "2", "1"]
        model = seed_network()
        model.load_state_dict(load_file(tmp_path / "model.safetensors"))
        plain = model(to_float(load_mnist(None).test_images[:3])).argmax(1)
        assert [int(match[2]) for match in found if match] == plain.tolist()
        assert "the workers have stopped" in told(serving)
    finally:
        serving.kill()
        serving.communicate()
    assert not alive(serving.pid)
    # What is left on disk are a public cluster file, keys, and shares.
    assert load_cluster(tmp_path / "cluster.yaml").keys == tmp_path / "keys"


def test_acts_out_of_order_say_so(tmp_path: Path) -> None:
    process = act("serve", tmp_path / "none")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "play the acts in the order" in text


def test_the_example_cluster_file_is_valid() -> None:
    config = load_cluster(ROOT / "configs" / "cluster.yaml")
    assert config.keys == ROOT / "configs" / ".." / "keys"
    assert config.max_request_bytes == 256 * 2**20
