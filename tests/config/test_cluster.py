"""The cluster file and the YAML loader under it: what is read, and how wrong files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from encml.config.cluster import ClusterConfig, PartyConfig, load_cluster
from encml.config.loading import Config, load_yaml
from encml.errors import ConfigError

GOOD = """\
parties:
  - {host: alpha, mesh_port: 9100, api_port: 9200}
  - {host: beta, mesh_port: 9100, api_port: 9200}
  - host: gamma
    mesh_port: 9100
    api_port: 9200
    bind: 0.0.0.0
keys: my-keys
timeout: 5
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_good_file_is_read_and_folders_are_relative_to_it(tmp_path: Path) -> None:
    config = load_cluster(write(tmp_path, GOOD))
    assert [party.host for party in config.parties] == ["alpha", "beta", "gamma"]
    assert config.keys == tmp_path.resolve() / "my-keys"
    assert config.store == tmp_path.resolve() / "store"
    assert (config.timeout, config.connect_timeout, config.fraction_bits, config.threads) == (5.0, 30.0, 16, 1)
    assert config.parties[2].listen_host == "0.0.0.0"
    assert config.parties[0].listen_host == "alpha"
    assert config.parties[1].mesh_address == "beta:9100"
    assert config.parties[1].api_address == "beta:9200"


def test_absolute_folder_stays(tmp_path: Path) -> None:
    assert load_cluster(write(tmp_path, GOOD + "store: /srv/shares\n")).store == Path("/srv/shares")


def test_config_is_frozen(tmp_path: Path) -> None:
    config = load_cluster(write(tmp_path, GOOD))
    with pytest.raises(ValidationError):
        config.timeout = 3.0  # type: ignore[misc]


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"clutser\.yaml: no such file; .*cluster\.yaml"):
        load_cluster(tmp_path / "clutser.yaml")


def test_folder_and_binary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_cluster(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_cluster(tmp_path / "x.yaml")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n"])
def test_empty_file(tmp_path: Path, text: str) -> None:
    assert "the file is empty" in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parties: [\n  {host: a\n", ":3: not valid YAML"),
        ("parties: []\nkeys: a\nkeys: b\n", ":3: not valid YAML: the key 'keys' stands already on line 2"),
        ("- a\n- b\n", "found a list"),
        ("just text\n", "found a str"),
        ("keys: &a [*a]\n", "only text, numbers"),
        ("keys: !!python/object:os.system x\n", "not valid YAML"),
        (
            GOOD + "time_out: 3\n",
            ":10: time_out: unknown key (did you mean 'timeout'?); allowed: comparison_bits, connect",
        ),
        (
            GOOD.replace("bind:", "bnid:"),
            ":7: parties[2].bnid: unknown key (did you mean 'bind'?); allowed: api_port, ",
        ),
        (GOOD.replace("5", "fast"), ":9: timeout: found 'fast'; input should be a valid number"),
        (GOOD.replace("5", "-1"), ":9: timeout: found -1; input should be greater than 0"),
        (GOOD.replace("5", ".inf"), ":9: timeout: found inf"),
        (GOOD.replace("9100", "'9100'", 1), ":2: parties[0].mesh_port: found '9100'; input should be a valid integer"),
        (GOOD.replace("9100", "true", 1), ":2: parties[0].mesh_port: found True; "),
        (GOOD.replace("9100", "70000", 1), "parties[0].mesh_port: found 70000; input should be less than or equal"),
        (GOOD.replace("host: beta, ", ""), ":3: parties[1].host: this key is missing"),
        ("keys: a\n", ":1: parties: this key is missing"),
        ("parties: [{host: a, mesh_port: 1, api_port: 2}]\n", "parties[1]: this key is missing"),
        (GOOD.replace("alpha", "beta"), "parties[1].mesh_port is beta:9100, as parties[0].mesh_port is"),
        (GOOD.replace("api_port: 9200", "api_port: 9100", 1), "parties[0].api_port is alpha:9100"),
        (GOOD + "fraction_bits: 40\n", "fraction_bits: found 40; input should be less than or equal to 24"),
        (GOOD + "comparison_bits: 65\n", "comparison_bits: found 65; input should be less than or equal to 64"),
        (
            GOOD + "comparison_bits: 19\n",
            "comparison_bits is 19, fraction_bits 16: a sign and whole bits need at least 4",
        ),
    ],
)
def test_wrong_files_name_line_key_found_and_allowed(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused(tmp_path, text)


def test_all_errors_of_a_file_are_listed(tmp_path: Path) -> None:
    message = refused(tmp_path, GOOD.replace("5", "fast") + "thread: 2\n")
    assert "timeout: found 'fast'" in message
    assert "thread: unknown key (did you mean 'threads'?)" in message


def test_fourth_party_is_refused() -> None:
    party = PartyConfig(host="a", mesh_port=1, api_port=2)
    others = [party.model_copy(update={"host": host}) for host in "bcd"]
    with pytest.raises(ValidationError):
        ClusterConfig(parties=(party, *others))  # type: ignore[arg-type]


class _Fixed(Config):
    kind: Literal["fixed"]
    size: int = 1


class _Decaying(Config):
    kind: Literal["decaying"]
    rate: float


class _Many(Config):
    value: Any = None
    rule: Annotated[_Fixed | _Decaying, Field(discriminator="kind")] = _Fixed(kind="fixed")
    rules: dict[str, _Fixed] = Field(default_factory=dict)
    maybe: _Decaying | None = None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-5", 1e-5),
        ("1.0e+3", 1e3),
        ("-.5", -0.5),
        ("0x10", 16),
        ("1_000", 1000),
        ("-3", -3),
        ("~", None),
        ("true", True),
        ("no", "no"),
        ("007", "007"),
        ("12:30", "12:30"),
        ("2024-01-02", "2024-01-02"),
    ],
)
def test_scalars_are_yaml_1_2(tmp_path: Path, text: str, expected: object) -> None:
    found = load_yaml(write(tmp_path, f"value: {text}\n"), _Many).value
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rule: {kind: decaying, rat: 1}\n", "rule.rat: unknown key (did you mean 'rate'?); allowed: kind, rate"),
        ("rule: {kind: decaying}\n", "rule.rate: this key is missing"),
        ("rule: {kind: other}\n", "'fixed', 'decaying'"),
        ("rules: {a: {kind: fixed, siz: 1}}\n", "rules.a.siz: unknown key (did you mean 'size'?); allowed: kind, size"),
        ("maybe: {kind: decaying, rate: 1, rte: 2}\n", "maybe.rte: unknown key (did you mean 'rate'?)"),
        ("[a]: 1\n", "not valid YAML"),
    ],
)
def test_nested_models_and_unions(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(write(tmp_path, text), _Many)
    assert expected in str(caught.value)
