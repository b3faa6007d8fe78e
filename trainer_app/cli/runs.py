"""``trainer runs``."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trainer_app.api.runs_schema import RunQuerySchema
from trainer_app.api.train_schema import TrainSchema
from trainer_app.cli.exits import Exit
from trainer_app.cli.log_lines import readable
from trainer_app.cli.session import Session, command
from trainer_app.cli.tables import figure, moment, size, table
from trainer_app.cli.watch import watch as watch_run
from trainer_app.errors import TrainerError
from trainer_app.replies import Moved, Run
from trainer_app.verify import check_curve, check_unfinished_curve

group = typer.Typer(help="Training runs.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="The run's id.")]


@command(group, "train", body=TrainSchema)
def train(
    session: Session,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key starts the same run once.")
    ] = None,
) -> Exit:
    """Start a training run."""
    accepted = session.client.train_run(session.body, idempotency_key=idempotency_key)
    if watch:
        session.notes.print(accepted["run_id"])
        return _watch(session, accepted["run_id"])
    if session.as_json:
        session.print_json(accepted)
    else:
        session.out.print(accepted["run_id"])
        session.notes.print(f"watch it: trainer runs watch {accepted['run_id']}", style="dim")
    return Exit.COMPLETED


@command(group, "list", body=RunQuerySchema)
def list_(session: Session) -> Exit:
    """List runs, newest first."""
    page = session.client.list_runs(**session.body)
    if session.as_json:
        session.print_json(page)
        return Exit.COMPLETED
    rows = [
        (
            run["run_id"],
            "paused" if run["paused"] and run["status"] == "queued" else run["status"],
            _model(run),
            f"{run['progress']}%",
            run["val_loss"],
            moment(run["created_at"]),
        )
        for run in page["data"]
    ]
    typer.echo(table(("run_id", "status", "model", "done", "val", "created"), rows))
    return Exit.COMPLETED


def _model(run: Run) -> str | None:
    """Its family and size; None: its row in the database is damaged."""
    spec = run["spec"]
    return None if spec is None else f"{spec['model_family']}/{spec['model_size']}"


@command(group, "show")
def show(session: Session, run_id: RunId) -> Exit:
    """Show a run as it stands."""
    session.print_json(session.client.get_run(run_id))
    return Exit.COMPLETED


@command(group, "watch")
def watch_(session: Session, run_id: RunId) -> Exit:
    """Follow a run to its end; Ctrl-C stops the watching, not the run."""
    return _watch(session, run_id)


@command(group, "logs")
def logs(
    session: Session,
    run_id: RunId,
    *,
    tail: Annotated[int, typer.Option(help="Lines from the end.")] = 200,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
) -> Exit:
    """Print a run's log; with --json one JSON object a line, as it was written."""
    if follow:
        lines = session.client.follow_logs(run_id, tail=tail)
    else:
        # str.splitlines would also split at U+2028, which may stand in a line.
        lines = filter(None, session.client.run_logs(run_id, tail=tail).split("\n"))
    for line in lines:
        typer.echo(line if session.as_json else readable(line))
    return Exit.COMPLETED


@command(group, "cancel")
def cancel(session: Session, run_id: RunId) -> Exit:
    """Ask for a run to be stopped; it keeps a checkpoint."""
    reply = session.client.cancel_run(run_id)
    if session.as_json:
        session.print_json(reply)
    else:
        session.out.print(reply["status"])
    return Exit.COMPLETED


@command(group, "pause")
def pause(session: Session, run_id: RunId) -> Exit:
    """Hold a run back, at a checkpoint if it runs, until it is resumed."""
    return _moved(session, session.client.pause_run(run_id))


@command(group, "resume")
def resume(session: Session, run_id: RunId) -> Exit:
    """Let a paused, cancelled or failed run go on from its last checkpoint."""
    return _moved(session, session.client.resume_run(run_id))


@command(group, "verify")
def verify(session: Session, run_id: RunId) -> Exit:
    """Check a run's curve against its hash chain: its manifest's, or its newest checkpoint's."""
    run = session.client.get_run(run_id)  # first: the curve may have got further since
    points = session.client.run_metrics(run_id)["points"]
    if run["status"] == "completed":
        verdict = check_curve(points, session.client.run_manifest(run_id))
    else:
        verdict = check_unfinished_curve(
            points,
            # which a server of the version before has not
            loss_chain=run.get("loss_chain"),
            loss_chain_step=run.get("loss_chain_step"),
        )
    if session.as_json:
        session.print_json({"run_id": run_id, **asdict(verdict)})
    else:
        session.out.print(verdict.message)
    return Exit.COMPLETED if verdict.ok else Exit.FAILED


@command(group, "metrics")
def metrics(
    session: Session,
    run_id: RunId,
    *,
    points: Annotated[
        int | None, typer.Option(help="Thin the curve to about so many points.")
    ] = 20,
) -> Exit:
    """Print a run's curve."""
    curve = session.client.run_metrics(run_id, points=points)
    if session.as_json:
        session.print_json(curve)
        return Exit.COMPLETED
    rows = [
        (
            point["step"],
            point["train_loss"],
            point["val_loss"],
            point["learning_rate"],
            point["grad_norm"],
            point["tokens_per_sec"],
        )
        for point in curve["points"]
    ]
    names = ("step", "loss", "val", "learning rate", "grad norm", "tokens/s")
    typer.echo(table(names, rows))
    return Exit.COMPLETED


@command(group, "artifact")
def artifact(
    session: Session,
    run_id: RunId,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Download the files into this folder.")
    ] = None,
) -> Exit:
    """List the files of a finished model, or download them."""
    pointer = session.client.run_artifact(run_id)
    for file in pointer["files"] if output is not None else ():
        assert output is not None
        target = _inside(output, file["name"])
        session.client.download_artifact(run_id, file["name"], target)
        with target.open("rb") as written:
            if hashlib.file_digest(written, "sha256").hexdigest() != file["sha256"]:
                raise TrainerError(f"{target} does not have the sha256 that the server names")
        session.notes.print(f"{target}  {size(file['bytes'])}", markup=False)
    if session.as_json:
        session.print_json(pointer)
    elif output is None:
        rows = [(file["name"], file["bytes"], file["sha256"][:12]) for file in pointer["files"]]
        typer.echo(table(("file", "bytes", "sha256"), rows))
    return Exit.COMPLETED


def _inside(folder: Path, name: str) -> Path:
    """Where a file of this name goes; a server does not choose places outside the folder."""
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise TrainerError(f"the server names a file outside the folder: {figure(name)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _moved(session: Session, reply: Moved) -> Exit:
    if session.as_json:
        session.print_json(reply)
    else:
        session.out.print(reply["status"])
    return Exit.COMPLETED


def _watch(session: Session, run_id: str) -> Exit:
    code, run = watch_run(session.client, run_id, session.notes)
    if session.as_json and run is not None:
        session.print_json(run)
    return code
