"""Follows a run to its end: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from trainer_app.cli.exits import Exit, of_status
from trainer_app.cli.tables import duration, short
from trainer_app.client import FINAL, Client
from trainer_app.replies import Run
from trainer_app.transport import NotReachable

POLL_SECONDS: Final = 0.5
LINE_SECONDS: Final = 5.0  # between two plain lines
PATIENCE_SECONDS: Final = 60.0  # with a server that does not answer: it may be restarting


class View(Protocol):
    """Shows a run as it moves."""

    def show(self, run: Run) -> None:
        """The run has been looked at again."""
        ...


def follow(client: Client, run_id: str, console: Console) -> Run:
    """Show the run until it has ended, and return it as it ended.

    Raises NotReachable when the server has been away for PATIENCE_SECONDS.
    """
    run = client.get_run(run_id)
    with _view(console) as view:
        view.show(run)
        while run["status"] not in FINAL:
            time.sleep(POLL_SECONDS)
            run = _patiently(client, run_id)
            view.show(run)
    return run


def watch(client: Client, run_id: str, console: Console) -> tuple[Exit, Run | None]:
    """Like ``follow``, with a summary at the end; Ctrl-C leaves the run alone."""
    try:
        run = follow(client, run_id, console)
    except KeyboardInterrupt:
        console.print(
            f"\nno longer watching; the run goes on\n"
            f"  watch it again: trainer runs watch {run_id}\n"
            f"  stop it:        trainer runs cancel {run_id}",
            markup=False,
        )
        return Exit.INTERRUPTED, None
    for line in summary(run):
        console.print(line, markup=False)
    return of_status(run["status"]), run


def summary(run: Run) -> list[str]:
    """How a run ended, in a line or two."""
    took = ""
    if run["completed_at"] is not None and run["started_at"] is not None:
        took = f" after {duration(run['completed_at'] - run['started_at'])}"
    if run["status"] == "failed":
        code = run["error_code"] or "INTERNAL_ERROR"
        return [
            f"failed{took}: {run['message']} ({code})",
            f"  its log: trainer runs logs {run['run_id']}",
        ]
    figures = []
    if run["train_loss"] is not None:
        figures.append(f"loss {run['train_loss']:.3f}")
    if run["val_loss"] is not None:
        perplexity = f"{math.exp(run['val_loss']):.1f}"
        figures.append(f"validation loss {run['val_loss']:.3f} (perplexity {perplexity})")
    return [f"{run['status']}{took}" + (f": {', '.join(figures)}" if figures else "")]


def figures_of(run: Run) -> list[str]:
    """What a run that moves has to show, step first."""
    found = [f"step {run['step']}/{run['total_steps'] or '?'}"]
    if run["train_loss"] is not None:
        found.append(f"loss {run['train_loss']:.3f}")
    if run["val_loss"] is not None:
        found.append(f"val {run['val_loss']:.3f}")
    if run["tokens_per_sec"] is not None:
        found.append(f"{short(run['tokens_per_sec'])} tok/s")
    if run["eta_sec"] is not None:
        found.append(f"eta {duration(run['eta_sec'])}")
    return found


def _patiently(client: Client, run_id: str) -> Run:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return client.get_run(run_id)
        except NotReachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


@contextmanager
def _view(console: Console) -> Iterator[View]:
    if not console.is_terminal:
        yield _Lines(console)
        return
    # 80 columns: a bar of 16 and the figures beside it.
    columns = (TextColumn("{task.description}"), BarColumn(16), TextColumn("{task.fields[rest]}"))
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress, progress.add_task("queued", total=None, rest=""))


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def show(self, run: Run) -> None:
        if not _moves(run):
            # A bar without a total pulses: something happens, or is waited for.
            self._progress.update(self._task, description=_waiting(run), rest="")
            return
        first, *rest = figures_of(run)
        self._progress.update(
            self._task,
            description=first,
            total=run["total_steps"],
            completed=run["step"],
            rest="  ".join(rest),
        )


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""
        self._due = 0.0
        self._shown: tuple[bool, float | None] = (False, None)

    def show(self, run: Run) -> None:
        moving = _moves(run)
        line = "  ".join(figures_of(run)) if moving else _waiting(run)
        now = time.monotonic()
        # A first line, an evaluation and a new message are worth a line at once.
        shown = moving, run["val_loss"]
        news = not moving or shown != self._shown
        if line != self._said and (news or now >= self._due or run["status"] in FINAL):
            self._console.print(line, markup=False)
            self._said, self._due, self._shown = line, now + LINE_SECONDS, shown


def _moves(run: Run) -> bool:
    return bool(run["step"]) and not run["paused"]


def _waiting(run: Run) -> str:
    if run["paused"] and run["status"] == "running":
        return "pausing"
    if run["paused"]:
        return run["message"]  # "paused at step 412"
    if run["status"] == "queued":
        ahead = run["queue_position"]
        return f"queued, {ahead} before it" if ahead else "queued"
    return run["message"] or run["status"]
