"""``trainer corpora``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from trainer_app.cli.exits import Exit
from trainer_app.cli.session import Session, command
from trainer_app.cli.tables import moment, size, table
from trainer_app.replies import Corpus

group = typer.Typer(help="Texts to train on.", no_args_is_help=True)

Limit = Annotated[int, typer.Option(help="Most items to show.")]
After = Annotated[str | None, typer.Option(help="The `next` of the page before.")]
FileId = Annotated[str, typer.Argument(help="The corpus's file_id.")]


@command(group, "add")
def add(
    session: Session,
    path: Annotated[Path, typer.Argument(help="A UTF-8 text.", exists=True, dir_okay=False)],
) -> Exit:
    """Upload a text; the same text gets the same file_id."""
    corpus = upload(session, path)
    if session.as_json:
        session.print_json(corpus)
    else:
        session.out.print(corpus["file_id"])
        session.notes.print(f"{size(corpus['bytes'])}, {corpus['lines']:,} lines", style="dim")
    return Exit.COMPLETED


@command(group, "list")
def list_(session: Session, *, limit: Limit = 50, after: After = None) -> Exit:
    """List the uploaded texts, newest first."""
    page = session.client.list_corpora(limit=limit, after=after)
    if session.as_json:
        session.print_json(page)
    else:
        rows = [
            (item["file_id"], item["bytes"], item["lines"], moment(item["created_at"]))
            for item in page["data"]
        ]
        typer.echo(table(("file_id", "bytes", "lines", "created"), rows))
    return Exit.COMPLETED


@command(group, "show")
def show(session: Session, file_id: FileId) -> Exit:
    """Show one uploaded text's figures."""
    session.print_json(session.client.get_corpus(file_id))
    return Exit.COMPLETED


@command(group, "delete")
def delete(session: Session, file_id: FileId) -> Exit:
    """Delete an uploaded text."""
    session.client.delete_corpus(file_id)
    session.notes.print(f"deleted {file_id}")
    return Exit.COMPLETED


def upload(session: Session, path: Path) -> Corpus:
    """Send a text with a progress bar, which only a terminal gets."""
    columns = (
        TextColumn("uploading"),
        BarColumn(24),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    hidden = not session.notes.is_terminal
    with Progress(*columns, console=session.notes, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=path.stat().st_size)
        return session.client.upload_corpus(
            path, on_progress=lambda sent: progress.update(task, completed=sent)
        )
