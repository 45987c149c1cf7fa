"""The commands ``run`` and ``report``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console

from encml.cli.late import error_console
from encml.cli.terminal import BarDisplay, summary_table
from encml.config import AnyExperiment, load_experiment
from encml.errors import ConfigError
from encml.experiment.display import Display
from encml.experiment.folder import REPORT, RunFolder, digest
from encml.experiment.metrics import encml_version
from encml.experiment.run import AnyMetrics, make_report, run_experiment

_log = logging.getLogger(__name__)


def run(
    config_file: Path | None, assignments: Sequence[str], fresh: bool, resume: Path | None, output: Path | None
) -> None:
    """Run an experiment, or go on with an interrupted one, and print what came out. Raises EncmlError."""
    with _folder(config_file, assignments, fresh, resume, output) as folder:
        try:
            metrics = _run(folder)
        except BaseException:
            typer.echo(f"\nStopped. To go on:  encml run --resume {folder.path}", err=True)
            raise
    console = Console()
    console.print(summary_table(metrics))
    console.print(f"Report: {folder.path / REPORT}", soft_wrap=True)


def report(folder: Path) -> None:
    """Make the report of a finished run anew. Raises ConfigError."""
    typer.echo(make_report(folder))


def _run(folder: RunFolder) -> AnyMetrics:
    if not error_console.is_terminal:
        return run_experiment(folder, Display(), encml_version())
    with BarDisplay(error_console) as display:
        return run_experiment(folder, display, encml_version())


def _folder(
    config_file: Path | None, assignments: Sequence[str], fresh: bool, resume: Path | None, output: Path | None
) -> RunFolder:
    """The folder to work in: a new one, or that of an interrupted run."""
    config = None if config_file is None else _config(config_file, assignments, output)
    if resume is not None:
        if fresh:
            raise ConfigError("--resume and --fresh contradict each other: give one of them")
        if config is None and (assignments or output is not None):
            raise ConfigError("--resume takes the configuration from its folder: leave --set and --output out")
        folder = RunFolder.resume(resume, encml_version())
        if config is not None and digest(config) != digest(folder.config):
            folder.close()
            raise ConfigError(f"{resume} was begun with another configuration than {config_file}: leave the file out")
        return folder
    if config is None:
        raise ConfigError("no experiment: give its YAML file, or --resume with the folder of an interrupted run")
    found = None if fresh else RunFolder.find(config, encml_version())
    if found is not None:
        _log.info("found the interrupted run %s of this experiment: going on with it (--fresh starts anew)", found.path)
        return found
    folder = RunFolder.create(config, encml_version())
    _log.info("run folder: %s", folder.path)
    return folder


def _config(config_file: Path, assignments: Sequence[str], output: Path | None) -> AnyExperiment:
    config = load_experiment(config_file, assignments)
    if output is None:
        return config
    return config.model_copy(update={"output": config.output.model_copy(update={"folder": output})})
