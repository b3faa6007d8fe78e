"""The process that speaks to W&B for one attempt of a run; what happened comes on standard input.

W&B takes a tenth of a millisecond of Python for each row, and several times that in a process whose
other threads want the interpreter: so it has one of its own, and the training keeps its own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from trainer_app.core.observer import EvaluationReport
from trainer_app.tracking.curve import EPOCH_COLUMNS, Curve, Row
from trainer_app.tracking.wire import Begin, End, Message, Resolved, Steps, decode

if TYPE_CHECKING:
    import wandb

_FLUSH_SECONDS: Final = 1.0  # the most of the curve that W&B's own file lacks after kill -9
_FINISH_SECONDS: Final = 3_600.0  # of a server that does not take what is left
_ORPHANED_SECONDS: Final = 3.0  # for what has arrived to get into that file


def main() -> None:
    """Track the run; what ends that early is said in a line on standard output."""
    # Of those that are meant for the whole group the run's process decides what becomes of the run,
    # and says so here. With a handler, which unlike SIG_IGN nobody inherits: W&B starts processes.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_it)
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever is printed is no answer
    try:
        _track(_messages(sys.stdin.buffer))
    except ImportError as error:
        problem = f"WANDB__ENABLED needs the extra wandb ({error})"
    except Exception as error:  # whatever it is, the run goes on
        problem = f"{type(error).__name__}: {error}"
    else:
        return
    os.write(answer, problem.encode("utf-8", "replace"))
    _die()  # W&B, which has failed, would hold it up


def _leave_it(_number: int, _frame: object) -> None:
    pass


def _messages(stream: BinaryIO) -> Iterator[Message]:
    for line in stream:
        yield decode(line)


def _track(messages: Iterator[Message]) -> None:
    begin = next(messages)
    assert isinstance(begin, Begin)
    threading.Thread(target=_end_with, args=[begin.parent], daemon=True).start()
    run = _started(begin)
    curve = Curve(Path(begin.memory))
    curve.skip(run.step - 1)
    for message in messages:
        if isinstance(message, End):
            _finish(run, curve, message)
            return
        if isinstance(message, Resolved):
            _configure(run, message.choices)
            continue
        if isinstance(message, EvaluationReport):
            curve.evaluation(message)
        else:
            assert isinstance(message, Steps)
            for step in message.steps:
                curve.step(step)
        _log(run, curve.rows())
    _end_orphaned()  # the run's process has died: before it ends it says so


def _end_with(parent: int) -> None:
    """Whatever W&B waits for: nobody is to be left behind by a worker that was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _end_orphaned()


def _end_orphaned() -> None:
    time.sleep(_ORPHANED_SECONDS)
    _die()


def _die() -> None:
    """At once, and with no word to W&B that the run were over."""
    os._exit(1)


def _started(begin: Begin) -> wandb.Run:
    # An extra, and slow to import: only here.
    import wandb  # noqa: PLC0415

    Path(begin.directory).mkdir(parents=True, exist_ok=True)
    # What is not set here, such as the mode, W&B reads from variables of its own.
    run = wandb.init(
        project=begin.project,
        dir=begin.directory,
        id=begin.run_id,
        resume="allow",
        config=dict(begin.spec),
        settings=wandb.Settings(
            init_timeout=begin.init_seconds,
            x_transaction_log_flush_interval=_FLUSH_SECONDS,
            # The process is a worker's: its output, code and repository are not the user's.
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            x_stats_pid=begin.parent,  # whose memory and cores it draws
        ),
    )
    run.define_metric("*", step_metric="global_step")
    return run


def _configure(run: wandb.Run, choices: Mapping[str, object]) -> None:
    """Let the config say what the attempt has chosen, also where one before chose otherwise."""
    update: Callable[[dict[str, object], bool], object] = run.config.update
    update(dict(choices), True)


def _log(run: wandb.Run, rows: Sequence[Row]) -> None:
    for row in rows:
        run.log(row, step=int(row["global_step"]), commit=True)


def _finish(run: wandb.Run, curve: Curve, end: End) -> None:
    import wandb  # noqa: PLC0415

    # A worker has one run after another: no crowd of such processes is to gather beside it.
    limit = threading.Timer(_FINISH_SECONDS, _die)
    limit.daemon = True
    limit.start()
    if end.goes_on:
        run.mark_preempting()
    else:
        _log(run, curve.rows(last=True))
    if end.summary is not None:
        table = wandb.Table(columns=list(EPOCH_COLUMNS), data=curve.epochs())
        run.log({**end.summary, "epoch_summary": table}, step=curve.logged + 1, commit=True)
    run.finish(exit_code=end.exit_code)
