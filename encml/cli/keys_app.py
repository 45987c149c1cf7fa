"""The commands under ``encml keys``, declared; what they do stands in ``encml.cli.keys``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encml.cli.late import run_command

keys = typer.Typer(
    name="keys", no_args_is_help=True, help="Make a cluster's keys and certificates.", pretty_exceptions_enable=False
)


@keys.command(
    "init",
    epilog="""
Examples:

  encml keys init --config cluster.yaml --clients alice,bob

  encml keys init keys --hosts julia.example,greg.example,me.example --write-config cluster.yaml
""",
)
def keys_init(
    folder: Annotated[
        Path | None, typer.Argument(help="Where the keys go; not with --config.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Take hosts and folder from this cluster file."),
    ] = None,
    hosts: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Names or addresses of the parties' hosts; default: this machine."),
    ] = None,
    clients: Annotated[str, typer.Option(metavar="NAME,...", help="Who may send requests.")] = "client",
    owner: Annotated[str, typer.Option(help="Who may put models into the cluster.")] = "owner",
    days: Annotated[int, typer.Option(min=1, help="How long the certificates are valid.")] = 365,
    write_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a cluster file that uses these keys.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Make the keys of a new cluster: an authority, three parties, an owner and clients."""
    run_command(
        "keys",
        "init",
        folder=folder,
        config_file=config,
        hosts=hosts,
        clients=clients,
        owner=owner,
        days=days,
        write_config=write_config,
        overwrite=overwrite,
    )


@keys.command("add-client", epilog="Example:  encml keys add-client keys carol")
def keys_add_client(
    folder: Annotated[Path, typer.Argument(help="The cluster's keys, with ca.key.", show_default=False)],
    name: Annotated[str, typer.Argument(help="The new client's name.", show_default=False)],
    days: Annotated[int, typer.Option(min=1, help="How long the certificate is valid.")] = 365,
) -> None:
    """Make keys for one more client."""
    run_command("keys", "add", folder=folder, name=name, days=days)
