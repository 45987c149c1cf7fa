"""What commands there are, with their options and help; what they do stands in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encml.cli.keys_app import keys
from encml.cli.late import Settings, run_command

app = typer.Typer(
    name="encml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they can show local variables, and those may be secrets
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys)

Cluster = Annotated[Path, typer.Option("--config", "-c", help="The cluster file: where the three parties are.")]
Model = Annotated[str, typer.Option("--model", "-m", help="The model's name in the cluster.")]
Owner = Annotated[str, typer.Option(help="Whose keys to use.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the file; may be repeated."),
]


def main() -> None:
    """Entry point of the ``encml`` command."""
    app(prog_name="encml")


@app.callback(
    epilog="Start with:  encml run configs/mnist_federated.yaml",
)
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Train one PyTorch model together, and use it, without showing each other the data."""
    Settings.debug, Settings.verbose = debug, verbose


@app.command(
    epilog="""
Examples:

  encml run configs/mnist_federated.yaml

  encml run configs/mnist_federated.yaml --set federated.rounds=3 --set 'privacy={unit: none}'

  encml run configs/encrypted_training_a.yaml --set parties.transport=tls

  encml run --resume runs/mnist-20270101-120000
"""
)
def run(
    config: Annotated[Path | None, typer.Argument(help="The experiment's YAML file.", show_default=False)] = None,
    assignments: Assignments = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew, even if a run was interrupted.")] = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="FOLDER", help="Go on with the interrupted run in this folder.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Make the run's folder in here.")
    ] = None,
) -> None:
    """Run an experiment: federated training, or training on encrypted data; private inference; a report.

    An interrupted run of the same experiment goes on after its last round.
    """
    run_command(
        "experiments",
        "run",
        config_file=config,
        assignments=assignments or [],
        fresh=fresh,
        resume=resume,
        output=output,
    )


@app.command(
    epilog="""
Example, on the second of three hosts:

  encml train configs/encrypted_training_a.yaml --cluster cluster.yaml --rank 1 --data owner-1.safetensors
"""
)
def train(
    config: Annotated[Path, typer.Argument(help="The experiment's YAML file, the same at all.", show_default=False)],
    cluster: Annotated[Path, typer.Option("--cluster", "-c", help="The cluster file, the same at all parties.")],
    rank: Annotated[int, typer.Option("--rank", "-r", min=0, max=2, help="Which party this is.")],
    data: Annotated[
        Path | None, typer.Option("--data", "-d", metavar="FILE", help="What this party owns; left out: nothing.")
    ] = None,
    assignments: Assignments = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="For this party's shares, now and to go on with."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew, even if this training was interrupted; at all parties.")
    ] = False,
) -> None:
    """Train on encrypted data as one party, on a host of its own; the same command goes on with what was interrupted.

    All three parties give the same experiment and cluster file, and each its own data, which no other process reads.
    On a single machine, "encml run" with parties.transport=tls does all of it.
    """
    run_command(
        "training",
        "train",
        config_file=config,
        assignments=assignments or [],
        cluster=cluster,
        rank=rank,
        data=data,
        output=output,
        fresh=fresh,
    )


@app.command(
    epilog="Example:  encml split configs/encrypted_training_a.yaml --set 'data.owners={kind: rows}' -o owners"
)
def split(
    config: Annotated[Path, typer.Argument(help="The experiment's YAML file.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the three files go.")],
    assignments: Assignments = None,
) -> None:
    """Write what each party owns of an experiment's data into a file of its own, to try "encml train" with."""
    run_command("training", "split", config_file=config, assignments=assignments or [], output=output)


@app.command(epilog="Example:  encml check configs/mnist_federated.yaml --set federated.rounds=3")
def check(
    config: Annotated[Path, typer.Argument(help="The experiment's YAML file.", show_default=False)],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key; may be repeated.")
    ] = None,
) -> None:
    """Check an experiment's file and print it with every key resolved, without running it."""
    run_command("files", "check", config_file=config, assignments=assignments or [])


@app.command(epilog="Example:  encml report runs/mnist-20270101-120000")
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
) -> None:
    """Make report.html of a finished run anew."""
    run_command("experiments", "report", folder=folder)


@app.command(epilog="Example, on the second host:  encml party --config cluster.yaml --rank 1")
def party(
    config: Cluster,
    rank: Annotated[int, typer.Option("--rank", "-r", min=0, max=2, help="Which party this is.")],
) -> None:
    """Run one of the three computing parties until Ctrl-C or SIGTERM."""
    run_command("party", "run", config_file=config, rank=rank)


@app.command(epilog="Example, on the second host:  encml install party-1.safetensors --config cluster.yaml --rank 1")
def install(
    file: Annotated[Path, typer.Argument(help="This party's own file of a model.", show_default=False)],
    config: Cluster,
    rank: Annotated[int, typer.Option("--rank", "-r", min=0, max=2, help="Which party this is.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model's name in the cluster; default: that in the file.")
    ] = None,
) -> None:
    """As a party: put its own shares of a model into its own store; once all three have, the owner can serve it."""
    run_command("party", "install", file=file, config_file=config, rank=rank, model=model)


@app.command(
    epilog="""
Examples:

  encml serve runs/mnist-20270101-120000 --config cluster.yaml --requests 3

  encml serve --config cluster.yaml --model digits
"""
)
def serve(
    config: Cluster,
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A run's folder, or one with party-*.safetensors; left out: what the parties have installed.",
            show_default=False,
        ),
    ] = None,
    model: Model = "model",
    requests: Annotated[
        int | None, typer.Option("--requests", "-n", min=1, help="Answer so many requests; default: no limit.")
    ] = None,
    owner: Owner = "owner",
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until all are answered; Ctrl-C then stops the serving.")
    ] = False,
) -> None:
    """As the owner: put a model's shares into a running cluster and let clients ask it."""
    run_command(
        "owner",
        "serve",
        folder=folder,
        config_file=config,
        model=model,
        requests=requests,
        owner=owner,
        wait=wait,
    )


@app.command(epilog="Example:  encml stop --config cluster.yaml --model model")
def stop(
    config: Cluster,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model; default: all of them.")] = None,
    owner: Owner = "owner",
) -> None:
    """As the owner: let nobody ask a model any more."""
    run_command("owner", "stop", config_file=config, model=model, owner=owner)


@app.command(epilog="Example:  encml status --config cluster.yaml")
def status(config: Cluster, owner: Owner = "owner") -> None:
    """Print how each party of a cluster is, and its models."""
    run_command("owner", "status", config_file=config, owner=owner)


@app.command(
    epilog="""
Examples:

  encml query --config cluster.yaml --images 0,1,2

  encml query --config cluster.yaml --name alice --input images.npy --save scores.npy
"""
)
def query(
    config: Cluster,
    model: Model = "model",
    name: Annotated[str, typer.Option("--name", help="Which client this is: whose keys to use.")] = "client",
    images: Annotated[
        str | None, typer.Option("--images", metavar="N,N,...", help="Numbers of MNIST test images, from 0.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The folder that holds MNIST; default: the subset in encml.")
    ] = None,
    tensor_file: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="Floats (batch, ...) as .npy or .safetensors.")
    ] = None,
    scores_file: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Also write the scores here, as .npy.")
    ] = None,
) -> None:
    """As a client: have images classified by a cluster that sees neither them nor the result."""
    run_command(
        "client",
        "query",
        config_file=config,
        model=model,
        client=name,
        images=images,
        data=data,
        tensor_file=tensor_file,
        scores_file=scores_file,
    )


@app.command(
    epilog="""
Examples:

  encml bench --quick

  encml bench --only 'matmul*' --only relu --parties --json bench.json

  encml bench --peer spu=spu-env/bin/python --markdown docs/benchmarks.md

  encml bench --only network-a-cross-entropy --parties --round-trip 40 --bandwidth 352
"""
)
def bench(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PATTERN", help="Cases or groups with such a name; may be repeated."),
    ] = None,
    in_process: Annotated[
        bool | None,
        typer.Option("--in-process/--parties", help="Only in one process, or only as three; default: both."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Time every case so often.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: a look at whether all runs.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads that each process computes with.")] = 1,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME=PYTHON",
            help="Also measure spu or crypten, with the Python of an environment that has it; may be repeated.",
        ),
    ] = None,
    round_trips: Annotated[
        list[float] | None,
        typer.Option(
            "--round-trip",
            metavar="MS",
            min=0.1,
            max=1000,
            help="Also over a line of so many milliseconds there and back; may be repeated. Needs Linux.",
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(metavar="MBIT", min=1, help="What a party can send over the line, in Mbit/s; default: no limit."),
    ] = None,
    goals: Annotated[
        bool, typer.Option("--goals", help="Also the cases that have a goal, and a table of what they should cost.")
    ] = False,
    figures: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Show a file of --json instead of measuring.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write a page with the tables here.")
    ] = None,
    performance_file: Annotated[
        Path | None,
        typer.Option("--performance", metavar="FILE", help="Put goals, memory and distances into this page's places."),
    ] = None,
) -> None:
    """Measure what encml costs on this machine: seconds, rounds, bytes and memory."""
    run_command(
        "bench",
        "bench",
        only=only or [],
        in_process=in_process,
        repeats=repeats,
        quick=quick,
        threads=threads,
        peers=peers or [],
        round_trips=round_trips or [],
        bandwidth=bandwidth,
        goals=goals,
        figures=figures,
        json_file=json_file,
        markdown_file=markdown_file,
        performance_file=performance_file,
    )


@app.command(
    epilog="""
Examples:

  encml functions

  encml functions exp divide softmax

  encml functions --markdown docs/functions.md
"""
)
def functions(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these; default: all.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures here.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write a page with the table here.")
    ] = None,
) -> None:
    """Measure how precise exp, log, division and the other functions of secrets are, and what they cost."""
    run_command("functions", "functions", names=names or [], json_file=json_file, markdown_file=markdown_file)


@app.command(
    epilog="""
Examples:

  encml ops

  encml ops softmax 'linalg.*'

  encml ops --measure --json encml/coverage/measured.json --markdown docs/operators.md
"""
)
def ops(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these, by a part of their name or a pattern.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure anew (minutes) instead of showing what this version came with.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the table here.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write a page with the table here.")
    ] = None,
) -> None:
    """Print which of PyTorch's operators work on secrets, how precise they are, and what they cost."""
    module, function = ("ops_measuring", "remeasure") if measure else ("ops", "show")
    run_command(module, function, names=names or [], json_file=json_file, markdown_file=markdown_file)


@app.command()
def version() -> None:
    """Print the version of encml and of what it computes with."""
    run_command("files", "version")
