"""``trainer up``, ``trainer demo`` and ``trainer db``: the commands that start something here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trainer_app.cli.demo import demo
from trainer_app.cli.exits import EXPLANATION
from trainer_app.settings import load_settings
from trainer_app.stack.up import up
from trainer_app.store import migrate

_DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="Where all files live.", envvar="APP__DATA_ROOT"),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("up", epilog=EXPLANATION)(_up)
    app.command("demo", epilog=EXPLANATION)(_demo)
    app.add_typer(_database, name="db")


def _up(
    *,
    port: Annotated[
        int | None,
        typer.Option(help="0 takes a free one.", envvar="API__PORT", show_default="8000"),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", envvar="API__HOST")
    ] = None,
    data_root: _DataRoot = None,
    flower: Annotated[
        bool, typer.Option("--flower", help="Also show workers and tasks, with Flower.")
    ] = False,
    flower_port: Annotated[
        int | None,
        typer.Option(help="0 takes a free one.", envvar="FLOWER__PORT", show_default="5555"),
    ] = None,
) -> None:
    """Start the whole stack in the foreground: broker, database, API, workers.

    Ctrl-C stops it: running jobs keep a checkpoint and go on at the next start.
    """
    # The options are settings like all others, which the stack's processes inherit.
    given = {
        "API__PORT": port,
        "API__HOST": host,
        "APP__DATA_ROOT": data_root,
        "FLOWER__PORT": flower_port,
    }
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    raise typer.Exit(up(load_settings(), with_flower=flower))


def _demo(
    *,
    keep: Annotated[bool, typer.Option(help="Leave the stack running at the end.")] = False,
    minutes: Annotated[float, typer.Option(min=0.1, max=600, help="To train for, about.")] = 2.0,
    data_root: Annotated[Path, typer.Option(help="Where its files live.")] = Path("data/demo"),
) -> None:
    """Train a tokenizer and a GPT-2 on Python's own source with the whole system, and use them."""
    raise typer.Exit(demo(data_root.absolute(), minutes=minutes, keep=keep))


_database = typer.Typer(help="The database.", no_args_is_help=True)


@_database.command("upgrade")
def _upgrade() -> None:
    """Bring the database of DATABASE__URL to the form that this version needs."""
    if migrate.upgrade(load_settings().database_url):
        typer.echo("the database is up to date")
    else:
        typer.echo("the database is of a later version, and left as it is")


@_database.callback()
def _group() -> None:
    """The database."""
