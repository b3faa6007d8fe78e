"""``trainer evaluate``, ``score``, ``generate`` and ``chat``: what a finished model is used for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Annotated

import typer

from trainer_app.api.chat_schema import ChatSchema
from trainer_app.api.evaluate_schema import EvaluateSchema
from trainer_app.api.generate_schema import GenerateSchema
from trainer_app.api.score_schema import ScoreSchema
from trainer_app.cli.exits import Exit, of_status
from trainer_app.cli.session import Session, command
from trainer_app.cli.tables import printable, table
from trainer_app.replies import Scored

RunId = Annotated[str, typer.Argument(help="A completed run.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait at most.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "evaluate", body=EvaluateSchema)(evaluate)
    command(app, "score", body=ScoreSchema)(score)
    command(app, "generate", body=GenerateSchema)(generate)
    command(app, "chat", body=ChatSchema)(chat)


def evaluate(
    session: Session,
    run_id: RunId,
    *,
    path: Annotated[str | None, typer.Option(help="--path-override, shorter.")] = None,
    timeout: Timeout = 3_600.0,
) -> Exit:
    """Measure a trained model's loss on held-out text."""
    given = dict(session.body) if path is None else {**session.body, "path_override": path}
    evaluated = session.client.evaluate(run_id, given, timeout=timeout)
    names = ("loss", "perplexity", "bits_per_byte")
    return _print_figures(session, evaluated, names)


def score(session: Session, run_id: RunId, *, timeout: Timeout = 600.0) -> Exit:
    """Tell how well a trained model predicts a text."""
    scored = session.client.score(run_id, session.body, timeout=timeout)
    code = _print_figures(session, scored, ("loss", "perplexity"))
    columns = [] if session.as_json else list(_columns(scored))
    if columns:
        names, *rows = zip(*columns, strict=True)
        typer.echo(table(list(map(str, names)), rows))
    return code


def generate(
    session: Session,
    run_id: RunId,
    *,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="--prompt-text, shorter.")
    ] = None,
    timeout: Timeout = 120.0,
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


def chat(session: Session, run_id: RunId, *, timeout: Timeout = 120.0) -> Exit:
    """Talk with a trained model: one --message, or line by line until the input ends."""
    given = dict(session.body)
    said = given.pop("message", None)
    for message in _lines() if said is None else [str(said)]:
        reply = session.client.chat(run_id, {**given, "message": message}, timeout=timeout)
        given["session_id"] = reply["session_id"]
        if session.as_json:
            session.print_json(reply)
        elif reply["response"] is None:
            session.notes.print(f"{reply['status']}: {reply['error']}", markup=False)
        else:
            session.out.print(printable(reply["response"]), markup=False)
        if reply["status"] != "completed":
            return of_status(reply["status"])
    if "session_id" in given:
        session.notes.print(f"go on with --session-id {given['session_id']}", style="dim")
    return Exit.COMPLETED


def _columns(scored: Scored) -> Iterator[list[object]]:
    """What is told of each token: a heading, then a value for each, the first included."""
    if scored["tokens"] is not None:
        yield ["token", *map(ascii, scored["tokens"])]
    if scored["surprisal"] is not None:
        yield ["bits", None, *scored["surprisal"]]
    if scored["topk"] is not None:
        likeliest = (
            ", ".join(f"{one['token']!a} {one['probability']:.3f}" for one in candidates)
            for candidates in scored["topk"]
        )
        yield ["likeliest", None, *likeliest]


def _lines() -> Iterator[str]:
    """The lines that a person or a script says; blank ones say nothing."""
    while True:
        if sys.stdin.isatty():
            typer.echo("you> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _print_figures(session: Session, reply: Mapping[str, object], names: tuple[str, ...]) -> Exit:
    status = str(reply["status"])
    if session.as_json:
        session.print_json(reply)
    elif status == "completed":
        typer.echo(table(names, [[reply[name] for name in names]]))
    else:
        session.notes.print(f"{status}: {reply['error']}", markup=False)
    return of_status(status)
