"""What the README and the docs show: Python blocks run, YAML passes its schema, commands have these options."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer
from pydantic import BaseModel

from encml.cli.app import app
from encml.config import ClusterConfig, ExperimentConfig, TrainingConfig, load_cluster, load_experiment

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(document.read_text(encoding="utf-8")) if found == language]


WITH_PYTHON = [document for document in DOCUMENTS if blocks(document, "python")]


@pytest.mark.parametrize("document", WITH_PYTHON, ids=lambda path: path.name)
def test_python_blocks_run(document: Path, tmp_path: Path) -> None:
    """All blocks of a document run as one script, in order, in an empty folder, with warnings as errors."""
    script = tmp_path / "blocks.py"
    body = "\n".join(blocks(document, "python"))
    # Party processes may import this file anew, as multiprocessing does: what runs stands behind the guard.
    script.write_text("if __name__ == '__main__':\n" + re.sub(r"^(?=.)", "    ", body, flags=re.MULTILINE))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error::UserWarning"}
    process = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_yaml_blocks_are_valid(document: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(document, "yaml")):
        path = tmp_path / f"block-{number}.yaml"
        path.write_text(text)
        if text.startswith("parties:"):
            load_cluster(path)
        else:
            load_experiment(path)


def commands(document: Path) -> list[list[str]]:
    """Every ``encml ...`` line of a shell block, as words; continued lines joined, comments and prompts removed."""
    text = "\n".join(blocks(document, "sh") + blocks(document, "bash")).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("encml ")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist_with_these_options(document: Path) -> None:
    for words in commands(document):
        command = typer.main.get_command(app)
        rest = words[1:]
        while rest and hasattr(command, "commands"):
            assert rest[0] in command.commands, f"{document.name}: no command {' '.join(words)!r}"
            command = command.commands[rest.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        used = {word.split("=")[0] for word in rest if word.startswith("-")}
        assert used <= known, f"{document.name}: {' '.join(words)!r} has no option {used - known}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_within_the_repository_lead_somewhere(document: Path) -> None:
    text = re.sub(BLOCK, "", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def fields(kind: object) -> set[str]:
    """Every key of a configuration and its sections, whatever unions they stand in."""
    found: set[str] = set()
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        found |= set(kind.model_fields)
        for field in kind.model_fields.values():
            found |= fields(field.annotation)
    for argument in get_args(kind):
        found |= fields(argument)
    return found


@pytest.mark.parametrize("kind", [ExperimentConfig, TrainingConfig, ClusterConfig])
def test_every_key_is_documented(kind: type[BaseModel]) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert [name for name in sorted(fields(kind)) if not re.search(rf"\b{name}\b", text)] == []
