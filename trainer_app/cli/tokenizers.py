"""``trainer tokenizers``."""

from __future__ import annotations

from typing import Annotated

import typer

from trainer_app.api.tokenizers_schema import TokenizerTrainSchema
from trainer_app.cli.corpora import After, Limit
from trainer_app.cli.exits import Exit, of_status
from trainer_app.cli.session import Session, command
from trainer_app.cli.tables import table

group = typer.Typer(help="Tokenizers: what turns text into numbers.", no_args_is_help=True)


@command(group, "train", body=TokenizerTrainSchema)
def train(
    session: Session,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 3_600.0,
) -> Exit:
    """Train a tokenizer on a corpus."""
    accepted = session.client.train_tokenizer(session.body)
    tokenizer_id = accepted["tokenizer_id"]
    if not wait:
        if session.as_json:
            session.print_json(accepted)
        else:
            session.out.print(tokenizer_id)
        return Exit.COMPLETED
    session.notes.print(f"training {tokenizer_id}")
    tokenizer = session.client.wait_for_tokenizer(tokenizer_id, timeout=timeout)
    session.print_json(tokenizer)
    return of_status(tokenizer["status"])


@command(group, "list")
def list_(session: Session, *, limit: Limit = 50, after: After = None) -> Exit:
    """List the tokenizers, newest first."""
    page = session.client.list_tokenizers(limit=limit, after=after)
    if session.as_json:
        session.print_json(page)
    else:
        names = ("tokenizer_id", "status", "bytes_per_token", "oov_rate")
        rows = [
            (item["tokenizer_id"], item["status"], item["bytes_per_token"], item["oov_rate"])
            for item in page["data"]
        ]
        typer.echo(table(names, rows))
    return Exit.COMPLETED


@command(group, "show")
def show(
    session: Session, tokenizer_id: Annotated[str, typer.Argument(help="The tokenizer's id.")]
) -> Exit:
    """Show a tokenizer and what was measured of it."""
    session.print_json(session.client.get_tokenizer(tokenizer_id))
    return Exit.COMPLETED
