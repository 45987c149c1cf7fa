"""The command as a person meets it: help, mistakes, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from encml import errors
from encml.cli.app import app
from encml.cli.client import read_tensor
from encml.cli.late import exit_code
from encml.config import ExperimentConfig, load_cluster, load_yaml
from encml.errors import ConfigError, DataError, EncmlError

SMALL = """\
experiment: small
data: {clients: 2}
federated: {strategy: fedavg, rounds: 2, learning_rate: 0.1}
privacy: {unit: none}
"""

COMMANDS = [
    "run",
    "check",
    "report",
    "bench",
    "keys",
    "party",
    "install",
    "serve",
    "stop",
    "status",
    "query",
    "ops",
    "version",
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def encml(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(code: int, *words: str | Path) -> str:
    """What the command says on stderr; it must end with ``code`` and without a traceback."""
    result = encml(*words)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.replace("│", " ").split())


def test_help_lists_every_command_and_their_examples() -> None:
    listed = encml("--help").stdout
    assert all(f" {name} " in listed for name in COMMANDS)
    for name in COMMANDS:
        result = encml(name, "--help")
        assert result.exit_code == 0
        assert name in ("version", "keys") or f"encml {name}" in result.stdout.split("Example")[1]


def test_help_comes_without_loading_pytorch() -> None:
    program = (
        "import sys; sys.argv = ['encml', '--help']\n"
        "from encml.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'opacus', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_mistyped_commands_and_options_are_usage_errors() -> None:
    assert "No such command 'rum'" in refused(2, "rum")
    assert "No such option" in refused(2, "run", "--frsh")
    assert "Missing" in refused(2, "party", "--config", "cluster.yaml")
    assert "'--rank'" in refused(2, "party", "--config", "cluster.yaml", "--rank", "3")


def test_a_mistyped_key_is_named_with_file_line_and_suggestion(config: Path) -> None:
    config.write_text(SMALL.replace("rounds", "ronds"))
    message = refused(2, "run", config)
    assert f"{config}:3: federated.ronds: unknown key (did you mean 'rounds'?)" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "missing.yaml"], "missing.yaml: no such file; in . there are: small.yaml"),
        (["check", "missing.yaml"], "missing.yaml: no such file"),
        (["run"], "no experiment: give its YAML file"),
        (
            ["run", "small.yaml", "--set", "federated.rounds=none"],
            "--set federated.rounds=none: federated.rounds: found",
        ),
        (["run", "small.yaml", "--set", "rounds"], "expected key=value"),
        (["run", "--resume", "nowhere"], "nowhere: no run folder"),
        (["run", "small.yaml", "--fresh", "--resume", "nowhere"], "contradict each other"),
        (["run", "--resume", "nowhere", "--output", "x"], "leave --set and --output out"),
        (["report", "nowhere"], "nowhere: no run folder"),
        (["serve", "nowhere", "--config", "small.yaml"], "neither a run's folder"),
        (["query", "--config", "small.yaml"], "give either --images"),
        (["query", "--config", "small.yaml", "--images", "0,x"], "expected numbers from 0"),
        (["query", "--config", "small.yaml", "--images", "1500"], "beyond the last test image, 1499"),
        (["query", "--config", "missing.yaml", "--images", "0"], "missing.yaml: no such file"),
        (["status", "--config", "small.yaml"], "small.yaml"),
        (["keys", "add-client", "nowhere", "carol"], "ca.key: no such file"),
        (["keys", "init"], "give either a folder for the keys"),
        (["keys", "init", "--config", "small.yaml", "--hosts", "a,b,c"], "leave --hosts and --write-config out"),
        (["keys", "init", "keys", "--hosts", "one,two"], "a cluster has 3 parties, found 2"),
    ],
)
def test_wrong_usage_says_what_to_do(config: Path, words: list[str], message: str) -> None:
    assert message in refused(2, *words)


def test_data_that_are_not_there_have_their_own_code(config: Path) -> None:
    assert "9,001 wanted" in refused(3, "run", config, "--set", "data.train_images=9001")
    assert "no such file" in refused(3, "query", "--config", config, "--input", "missing.npy")


def test_every_error_has_its_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EncmlError)]
    codes = {kind.__name__: exit_code(kind("message")) for kind in kinds}
    assert codes == {
        "EncmlError": 1,
        "ConfigError": 2,
        "DataError": 3,
        "InvalidTensor": 3,
        "UnsupportedOperation": 1,
        "SecretError": 1,
        "CheckError": 1,
        "ProtocolError": 4,
        "PartyError": 4,
        "PartyTimeout": 4,
        "AuthenticationError": 4,
        "ServingError": 4,
        "PrivacyError": 5,
    }


def test_debug_shows_where_an_error_comes_from() -> None:
    result = encml("--debug", "run", "missing.yaml")
    assert isinstance(result.exception, ConfigError)


def test_check_prints_the_resolved_configuration(config: Path, tmp_path: Path) -> None:
    result = encml("check", config, "--set", "federated.rounds=7")
    assert result.exit_code == 0
    (tmp_path / "resolved.yaml").write_text(result.stdout)
    resolved = load_yaml(tmp_path / "resolved.yaml", ExperimentConfig)
    assert (resolved.federated.rounds, resolved.federated.server.learning_rate) == (7, 1.0)


def test_version_names_what_matters() -> None:
    result = encml("version")
    assert result.exit_code == 0
    assert f"torch {torch.__version__}" in result.stdout
    assert "encml " in result.stdout


def test_keys_come_with_a_cluster_file_that_finds_them(tmp_path: Path) -> None:
    result = encml(
        *("keys", "init", "c/keys", "--hosts", "a.example, b.example,b.example"),
        *("--clients", "alice,bob", "--write-config", "c/cluster.yaml"),
    )
    assert result.exit_code == 0, result.output
    cluster = load_cluster("c/cluster.yaml")
    assert cluster.keys == tmp_path / "c" / "keys"
    assert [(p.host, p.mesh_port, p.api_port) for p in cluster.parties] == [
        ("a.example", 9100, 9200),
        ("b.example", 9100, 9200),
        ("b.example", 9101, 9201),
    ]
    assert {"alice.key", "bob.key", "owner.key", "party-2.key"} <= {p.name for p in cluster.keys.iterdir()}
    assert encml("keys", "add-client", "c/keys", "carol").exit_code == 0
    assert (cluster.keys / "carol.pem").exists()
    assert "holds keys already" in refused(2, "keys", "init", "c/keys")
    assert "there is such a file already" in refused(2, "keys", "init", "d/keys", "--write-config", "c/cluster.yaml")
    assert not Path("d").exists()
    assert "holds keys already" in refused(2, "keys", "init", "--config", "c/cluster.yaml")
    assert encml("keys", "init", "--config", "c/cluster.yaml", "--clients", "dora", "--overwrite").exit_code == 0
    assert (cluster.keys / "dora.pem").exists()
    assert not (cluster.keys / "alice.pem").exists()


def test_inputs_are_read_and_nothing_pickled_is(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "a.npy", values)
    save_file({"x": torch.from_numpy(values)}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.safetensors"):
        assert read_tensor(tmp_path / name).tolist() == values.tolist()
    np.save(tmp_path / "pickled.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "integers.npy", np.arange(3))
    np.save(tmp_path / "scalar.npy", np.float32(1))
    save_file({"x": torch.ones(1), "y": torch.ones(1)}, tmp_path / "two.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "a.pt").write_bytes(b"")
    for name in (
        "pickled.npy",
        "integers.npy",
        "scalar.npy",
        "two.safetensors",
        "broken.safetensors",
        "empty.npy",
        "a.pt",
    ):
        with pytest.raises(DataError, match=name):
            read_tensor(tmp_path / name)
