"""``trainer generate``."""

from __future__ import annotations

from typing import Annotated

import typer

from trainer_app.api.generate_schema import GenerateSchema
from trainer_app.cli.exits import Exit, of_status
from trainer_app.cli.session import Session, command
from trainer_app.cli.tables import printable


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "generate", body=GenerateSchema)(generate)


def generate(
    session: Session,
    run_id: Annotated[str, typer.Argument(help="A completed run.")],
    *,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="--prompt-text, shorter.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 120.0,
) -> Exit:
    """Let a trained model continue a text."""
    given = dict(session.body) if prompt is None else {**session.body, "prompt_text": prompt}
    generated = session.client.generate(run_id, given, timeout=timeout)
    if session.as_json:
        session.print_json(generated)
    elif generated["outputs"] is None:
        session.notes.print(f"{generated['status']}: {generated['error']}")
    else:
        start = str(given.get("prompt_text", ""))
        for number, text in enumerate(generated["outputs"]):
            if number:
                session.notes.rule(style="dim")
            # What a model writes is not markup.
            session.out.print(start, style="bold", end="", markup=False)
            session.out.print(printable(text), markup=False)
    return of_status(generated["status"])
