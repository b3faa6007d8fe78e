"""A run's observers in the service: its row, its log and its events."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Final

import psutil
import structlog

from tasks import process
from tasks.held import Held
from tasks.job import Job
from trainer_app.core import checkpoint_name
from trainer_app.core.observer import (
    CheckpointReport,
    EvaluationReport,
    Observers,
    Silent,
    StartReport,
    StepReport,
    StopReason,
)
from trainer_app.core.perplexity import perplexity
from trainer_app.errors import LeaseLost, Unavailable
from trainer_app.events import JobEvents
from trainer_app.log import JobLog
from trainer_app.store import lease
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim, MetricPoint, Progress

_FLUSH_SECONDS: Final = 0.5
_KEPT_POINTS: Final = 100_000  # while the database is away
_WRITTEN_POINTS: Final = 5_000  # in one transaction, which the lease's beats wait for
_LOG_SECONDS: Final = 5.0  # between two lines about steps

_log = structlog.get_logger(__name__)


class RowReporter(Silent):
    """Writes progress and the curve to the database from a thread, batched by time.

    The training loop never waits for the database, and points are kept while it is away.
    """

    def __init__(self, database: Database, claim: Claim, held: Held) -> None:
        self._database = database
        self._claim = claim
        self._held = held
        self._lock = threading.Lock()
        self._update = Progress()
        self._points: deque[MetricPoint] = deque()
        self._changed = False
        self.has_dropped = False  # points, of which there were too many while the database was away
        self._pace = _Pace()
        self._resumed: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def on_message(self, message: str) -> None:
        if self._resumed is not None:
            message = f"{message} ({self._resumed})"
        self._change(Progress(message=message))

    def on_start(self, start: StartReport) -> None:
        self._resumed = resumed(self._claim, start)
        self._pace.start(start.first_step, start.total_steps)
        self._change(
            # Not always what was told last: the newest checkpoint may be damaged.
            Progress(
                resolved=json.dumps(start.spec.worker_choices),
                step=start.first_step,
                total_steps=start.total_steps,
            ).merged(_reached(start.first_step, start.loss_chain))
        )

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        last = steps[-1]
        update = Progress(
            step=last.step,
            total_steps=last.total_steps,
            epoch=last.epoch,
            progress=min(99, 100 * last.step // last.total_steps),
            train_loss=last.train_loss,
            tokens_per_sec=last.tokens_per_sec,
            eta_sec=self._pace.seconds_left(last.step),
        )
        self._change(update, points_of(steps))

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        point = MetricPoint(
            step=evaluation.step, epoch=evaluation.epoch, val_loss=evaluation.val_loss
        )
        self._change(Progress(val_loss=evaluation.val_loss), [point])

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        self._change(
            Progress(checkpoint=checkpoint.path.name, checkpoint_step=checkpoint.step).merged(
                _reached(checkpoint.step, checkpoint.loss_chain)
            )
        )

    @property
    def behind(self) -> bool:
        """Whether something waits that the database does not have."""
        return self._changed

    def close(self) -> None:
        """Write what waits, and stop."""
        self._closing.set()
        self._thread.join()

    def _change(self, update: Progress, points: Sequence[MetricPoint] = ()) -> None:
        with self._lock:
            self._update = self._update.merged(update)
            self._points.extend(points)
            self._keep_the_newest()
            self._changed = True

    def _keep_the_newest(self) -> None:
        while len(self._points) > _KEPT_POINTS:
            self._points.popleft()
            self.has_dropped = True

    def _run(self) -> None:
        while not self._closing.wait(_FLUSH_SECONDS):
            self._flush()
        # The end of a finished run's curve is waited for; what a stopped one has not told is in
        # its journal.
        while not self._flush() and self._held.should_stop() is None:
            time.sleep(_FLUSH_SECONDS)

    def _flush(self) -> bool:
        """Write what waits; False: the database is away, and it still does."""
        while self._changed:
            with self._lock:
                update = self._update
                count = min(len(self._points), _WRITTEN_POINTS)
                points = [self._points.popleft() for _ in range(count)]
                self._changed = bool(self._points)
            if self._changed or self.has_dropped:  # what the curve is said to reach is to be there
                update = replace(update, loss_chain=None, loss_chain_step=None)
            try:
                lease.progress(self._database, self._claim, update, points)
            except LeaseLost:
                self._held.stop(StopReason.FENCED)
            except Unavailable as error:
                _log.warning("progress waits for the database", error=str(error))
                with self._lock:
                    self._points.extendleft(reversed(points))
                    self._keep_the_newest()
                    self._changed = True
                return False
            except Exception:
                # To try the same again would be in vain. The journal has the points.
                _log.exception("progress could not be written", job_id=self._claim.job_id)
                self.has_dropped = True
        return True


def _reached(step: int, loss_chain: str | None) -> Progress:
    """What a curve must come to; nothing of a run that was begun by a version without a chain."""
    if loss_chain is None:
        return Progress()
    return Progress(loss_chain=loss_chain, loss_chain_step=step)


def points_of(steps: Sequence[StepReport]) -> list[MetricPoint]:
    """The points of the curve among some steps."""
    return [
        MetricPoint(
            step=step.step,
            epoch=step.epoch,
            train_loss=step.train_loss,
            learning_rate=step.learning_rate,
            grad_norm=step.grad_norm,
            tokens_per_sec=step.tokens_per_sec,
            step_ms=step.step_ms,
            mfu=step.mfu,
            chain=step.chain,
        )
        for step in steps
        if step.in_curve
    ]


def resumed(claim: Claim, start: StartReport) -> str | None:
    """How and why an attempt goes on where another has ended; None for a first one."""
    if claim.attempt == 1:
        return None
    lost = [*start.left_out, *_gone(claim, start)]
    return "; ".join((f"{why(claim)}, resumed from {start.first_step}", *lost))


def _gone(claim: Claim, start: StartReport) -> list[str]:
    """A checkpoint that an attempt before this one has told of, and that nobody finds any more."""
    name = claim.checkpoint or ""
    step = checkpoint_name.step_of(name) or 0
    if step <= start.first_step or any(name in words for words in start.left_out):
        return []
    return [f"the checkpoint of step {step} is gone"]


def why(claim: Claim) -> str:
    """Why there is another attempt."""
    cause = claim.cause or "interrupted"  # by a version that did not say why
    return f"attempt {claim.attempt}: {cause}"


class _Pace:
    """The time that the steps so far took, and so what is left."""

    def start(self, step: int, total_steps: int) -> None:
        self._first, self._total, self._since = step, total_steps, time.monotonic()

    def seconds_left(self, step: int) -> float | None:
        """None: only the first step is done, which is slower than those that follow."""
        done = step - self._first
        if done == 1 and step < self._total:
            return None
        return (self._total - step) * (time.monotonic() - self._since) / max(1, done)


class LogReporter(Silent):
    """Tells the story of a run in its log: a line about steps every few seconds, at most."""

    def __init__(self, log: JobLog, claim: Claim) -> None:
        self._log = log
        self._claim = claim
        self._said_at = 0.0

    def on_message(self, message: str) -> None:
        self._log.info(message)

    def on_start(self, start: StartReport) -> None:
        if (why := resumed(self._claim, start)) is not None:
            self._log.info(why)
        told = {name: getattr(start, name) for name in StartReport.__slots__ if name != "spec"}
        self._log.info("training", **{**told, **start.spec.worker_choices})

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        last = steps[-1]
        now = time.monotonic()
        if now - self._said_at < _LOG_SECONDS and last.step < last.total_steps:
            return
        self._said_at = now
        self._log.info(
            "step",
            step=last.step,
            total_steps=last.total_steps,
            epoch=last.epoch,
            train_loss=round(last.train_loss, 4),
            learning_rate=last.learning_rate,
            grad_norm=None if last.grad_norm is None else round(last.grad_norm, 4),
            tokens_per_sec=round(last.tokens_per_sec),
            step_ms=round(last.step_ms, 3),
            **({} if last.mfu is None else {"mfu": round(last.mfu, 4)}),
        )

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        self._log.info(
            "evaluation",
            step=evaluation.step,
            val_loss=round(evaluation.val_loss, 4),
            val_ppl=round(perplexity(evaluation.val_loss), 2),
            best_val_loss=round(evaluation.best_val_loss, 4),
            improved=evaluation.improved,
        )

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        self._log.info(
            "checkpoint",
            step=checkpoint.step,
            name=checkpoint.path.name,
            seconds=round(checkpoint.seconds, 3),
        )


@contextmanager
def telling(job: Job) -> Iterator[Callable[[str], None]]:
    """Messages while no engine is at work that would tell them: into the log and the row."""
    with closing(RowReporter(process.database(), job.claim, job.held)) as rows:
        yield Observers([LogReporter(job.log, job.claim), rows]).on_message


class EventReporter(Silent):
    """Sends a run's events in the order of the contract."""

    def __init__(self, events: JobEvents) -> None:
        self._events = events
        self._total_epochs = 1
        self._last: StepReport | None = None

    def on_start(self, start: StartReport) -> None:
        self._total_epochs = start.total_epochs
        self._events.metrics_config(
            {
                "model_family": start.model_family,
                "model_size": start.model_size,
                "total_epochs": start.total_epochs,
                "queue": self._events.queue_name,
                "cpu_cores": os.cpu_count() or 1,
                "memory_mb": psutil.virtual_memory().total // 2**20,
                "optimal_threads": start.threads,
                "batch_size": start.batch_size,
                "learning_rate": start.learning_rate,
            }
        )

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        last = self._last = steps[-1]
        percent = 100 * last.step // last.total_steps
        self._events.progress(percent, f"step {last.step} of {last.total_steps}")
        if not last.to_be_evaluated:  # else one event tells both
            self._events.metrics_progress(self._point(last, last))

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        validation: dict[str, object] = {
            "val_loss": evaluation.val_loss,
            "val_ppl": perplexity(evaluation.val_loss),
        }
        point = self._point(evaluation, self._last)
        self._events.metrics_progress(point | validation, evaluation=True)

    def _point(
        self, report: StepReport | EvaluationReport, step: StepReport | None
    ) -> dict[str, object]:
        """``step``: None where an attempt goes on with the evaluation of another one's last."""
        norm = None if step is None else step.grad_norm
        return {
            "epoch": report.epoch,
            "total_epochs": self._total_epochs,
            "step": report.step,
            "train_loss": report.train_loss,
            "train_ppl": perplexity(report.train_loss),
            # The contract has numbers here.
            "grad_norm": 0.0 if norm is None else norm,
            "samples_per_sec": 0.0 if step is None else step.samples_per_sec,
            "loss": report.train_loss,
            "perplexity": perplexity(report.train_loss),
        }
