"""A run's curve on Weights & Biases, where the operator has switched it on.

W&B may be slow, away or broken, and is never worth a run: everything that calls it happens in a
thread of its own, behind a bounded queue. The first failure is a warning in the run's log, and
ends the tracking of that attempt alone.
"""

from __future__ import annotations

import json
import math
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from trainer_app.core.evaluate import perplexity
from trainer_app.core.files import write_atomically
from trainer_app.core.fit import Finished, Stopped
from trainer_app.core.observer import EvaluationReport, Silent, StepReport, StopReason

if TYPE_CHECKING:
    from types import TracebackType

    import wandb

    from trainer_app.core.spec import TrainSpec
    from trainer_app.log import JobLog
    from trainer_app.settings import Tracking

_WAITING: Final = 1_000  # reports that may wait for W&B: at four a second, minutes of silence
# Steps of one report, of which there are four a second: each takes 0.4 ms from the training.
_AT_ONCE: Final = 50
_CLOSE_SECONDS: Final = 5.0  # for what waits at the end; uploads go on while the worker lives
_INIT_SECONDS: Final = 60.0
_FLUSH_SECONDS: Final = 1.0  # the most of the curve that W&B's own file lacks after kill -9

Row = dict[str, float]
_Report = Sequence[StepReport] | EvaluationReport


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """Nothing more comes from this attempt."""

    exit_code: int  # 0: the run is finished
    goes_on: bool = False  # another attempt will take the run up
    finished: Finished | None = None


class Tracker(Silent):
    """Hands what happens to a run to W&B while its ``with`` block runs; does nothing when off.

    ``memory`` is a file beside the run's checkpoints: what earlier attempts have told already.
    """

    def __init__(
        self,
        settings: Tracking,
        log: JobLog,
        *,
        run_id: str,
        spec: TrainSpec,
        memory: Path,
        init_seconds: float = _INIT_SECONDS,
        close_seconds: float = _CLOSE_SECONDS,
        waiting: int = _WAITING,
    ) -> None:
        self._settings = settings
        self._log: JobLog | None = log
        self._run_id = run_id
        self._spec = spec
        self._memory = memory
        self._init_seconds = init_seconds
        self._close_seconds = close_seconds
        self._queue: queue.Queue[_Report | _End] = queue.Queue(waiting)
        self._lock = threading.Lock()
        self._off = not settings.enabled
        self._end = _End(exit_code=1)
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)

    def __enter__(self) -> Self:
        if not self._off:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._off:
            self._put(self._end)
            self._thread.join(self._close_seconds)
        # The run's log is about to be closed: a thread that goes on must not write to it.
        with self._lock:
            if self._thread.is_alive() and self._log is not None and not self._off:
                self._log.warning("Weights & Biases has not taken everything yet")
            self._log = None

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        self._put(_thinned(steps))

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        self._put(evaluation)

    def end(self, outcome: Finished | Stopped) -> None:
        """How the attempt ended; one of which this is never said has failed."""
        if isinstance(outcome, Stopped):
            goes_on = outcome.reason in (StopReason.DRAIN, StopReason.FENCED, StopReason.PAUSE)
            self._end = _End(exit_code=1, goes_on=goes_on)
        else:
            self._end = _End(exit_code=0, finished=outcome)

    def _put(self, item: _Report | _End) -> None:
        if self._off:
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._switch_off(f"it has not taken {self._queue.maxsize} reports in time")

    def _switch_off(self, reason: str) -> None:
        with self._lock:
            if self._log is not None and not self._off:
                self._log.warning(f"Weights & Biases is switched off: {reason}")
            self._off = True

    def _run(self) -> None:
        try:
            self._track()
        except ImportError as error:
            self._switch_off(f"WANDB__ENABLED needs the extra wandb ({error})")
        except Exception as error:  # whatever it is, the run goes on
            self._switch_off(f"{type(error).__name__}: {error}")

    def _track(self) -> None:
        # An extra, and slow to import: only here.
        import wandb  # noqa: PLC0415

        self._settings.directory.mkdir(parents=True, exist_ok=True)
        # What is not set here, such as the mode, W&B reads from variables of its own.
        run = wandb.init(
            project=self._settings.project,
            dir=self._settings.directory,
            id=self._run_id,
            resume="allow",
            config=asdict(self._spec),
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=self._init_seconds,
                x_transaction_log_flush_interval=_FLUSH_SECONDS,
                # The process is a worker: its output, code and repository are not the user's.
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
            ),
        )
        run.define_metric("*", step_metric="global_step")
        curve = Curve(self._memory)
        curve.skip(run.step - 1)
        while not isinstance(item := self._next(), _End):
            if isinstance(item, EvaluationReport):
                curve.evaluation(item)
            else:
                for step in item:
                    curve.step(step)
            _log(run, curve.rows())
        _finish(run, curve, item)

    def _next(self) -> _Report | _End:
        # Reports were dropped, and none will follow, where it was switched off.
        return _End(exit_code=1) if self._off else self._queue.get()


def _thinned(steps: Sequence[StepReport]) -> Sequence[StepReport]:
    """All of them, or, where they come faster than W&B is worth, some and those of the curve."""
    stride = math.ceil(len(steps) / _AT_ONCE)
    return [step for n, step in enumerate(steps) if n % stride == 0 or step.in_curve]


def _log(run: wandb.Run, rows: Sequence[Row]) -> None:
    for row in rows:
        run.log(row, step=int(row["global_step"]), commit=True)


def _finish(run: wandb.Run, curve: Curve, end: _End) -> None:
    import wandb  # noqa: PLC0415

    if end.goes_on:
        run.mark_preempting()
    else:
        _log(run, curve.rows(last=True))
    if end.finished is not None:
        summary: dict[str, object] = {
            "global_step": end.finished.steps,
            "early_stopped": end.finished.early_stopped,
            "epoch_summary": wandb.Table(columns=list(EPOCH_COLUMNS), data=curve.epochs()),
        }
        if end.finished.test_loss is not None:  # there is a test split
            summary["test_loss"] = end.finished.test_loss
            summary["test_ppl"] = perplexity(end.finished.test_loss)
        if (performance := end.finished.performance) is not None:
            summary["peak_memory_bytes"] = performance.peak_memory_bytes
            summary["flops_per_token"] = performance.flops_per_token
            summary["flops_source"] = performance.flops_source
        run.log(summary, step=curve.logged + 1, commit=True)
    run.finish(exit_code=end.exit_code)


EPOCH_COLUMNS: Final = ("epoch", "train_loss", "train_ppl", "val_loss", "val_ppl")


@dataclass(slots=True, kw_only=True)
class _Epoch:
    """Figures of one epoch."""

    steps: int = 0
    loss: float = 0.0  # their sum
    val_loss: float | None = None  # of the last evaluation


@dataclass(slots=True, kw_only=True)
class _Told:
    """What W&B knows of a run."""

    logged: int = 0  # the last step that it was given
    waiting: Row | None = None  # the row after that: an evaluation may still add to it
    epochs: dict[str, _Epoch] = field(default_factory=dict)  # by number; JSON's keys are text


class Curve:
    """Turns reports into rows, each of which is given out once, also when an attempt redoes steps.

    W&B refuses a step that is not beyond the last one, and an attempt that takes up a checkpoint
    repeats what came after it, with equal figures: those are left out.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._told = _read(memory)
        self._ready: list[Row] = []

    @property
    def logged(self) -> int:
        """The last step that was given out."""
        return self._told.logged

    def skip(self, step: int) -> None:
        """W&B itself has all up to this step."""
        self._told.logged = max(self._told.logged, step)
        if self._last <= self._told.logged:
            self._told.waiting = None

    def step(self, report: StepReport) -> None:
        """Take one step."""
        if report.step <= self._last:
            return
        self._begin(report.step, report.epoch)
        assert self._told.waiting is not None
        self._told.waiting |= {
            "train_loss": report.train_loss,
            "train_ppl": perplexity(report.train_loss),
            "samples_per_sec": report.samples_per_sec,
            "tokens_per_sec": report.tokens_per_sec,
            "step_ms": report.step_ms,
        }
        if report.mfu is not None:
            self._told.waiting["mfu"] = report.mfu
        if report.grad_norm is not None:
            self._told.waiting["grad_norm"] = report.grad_norm
        epoch = self._epoch(report.epoch)
        epoch.steps += 1
        epoch.loss += report.train_loss

    def evaluation(self, report: EvaluationReport) -> None:
        """Take one evaluation: it belongs to the row of its step."""
        if report.step > self._last:
            self._begin(report.step, report.epoch)
        if self._told.waiting is None or report.step < self._last:
            return
        self._told.waiting |= {
            "val_loss": report.val_loss,
            "val_ppl": perplexity(report.val_loss),
            "best_val_loss": report.best_val_loss,
            "epochs_no_improve": report.evaluations_without_improvement,
        }
        self._epoch(report.epoch).val_loss = report.val_loss

    def rows(self, *, last: bool = False) -> list[Row]:
        """The rows that are complete; ``last``: nothing more comes, so all are.

        The memory is written before: after a crash rows of the last moment may be missing, but
        none is doubled.
        """
        if last:
            self._complete()
        rows = self._ready
        self._ready = []
        if rows:
            self._told.logged = int(rows[-1]["global_step"])
        # A thread that W&B kept waiting may come when the run has ended and its folder is gone:
        # nobody will want to know then, and the folder is not to come back.
        with suppress(FileNotFoundError):
            write_atomically(self._memory, json.dumps(asdict(self._told)).encode())
        return rows

    def epochs(self) -> list[list[float | None]]:
        """The rows of the table of epochs: mean losses over the steps."""
        return [
            [int(number), *_with_perplexity(_mean(epoch)), *_with_perplexity(epoch.val_loss)]
            for number, epoch in self._told.epochs.items()
        ]

    @property
    def _last(self) -> int:
        """The last step that was heard of."""
        if self._told.waiting is not None:
            return int(self._told.waiting["global_step"])
        return self._told.logged

    def _begin(self, step: int, epoch: int) -> None:
        self._complete()
        self._told.waiting = {"global_step": step, "epoch": epoch}

    def _complete(self) -> None:
        if self._told.waiting is not None:
            self._ready.append(self._told.waiting)
            self._told.waiting = None

    def _epoch(self, number: int) -> _Epoch:
        return self._told.epochs.setdefault(str(number), _Epoch())


def _read(memory: Path) -> _Told:
    if not memory.exists():
        return _Told()
    values = json.loads(memory.read_bytes())
    epochs = {number: _Epoch(**epoch) for number, epoch in values["epochs"].items()}
    return _Told(logged=values["logged"], waiting=values["waiting"], epochs=epochs)


def _mean(epoch: _Epoch) -> float | None:
    return epoch.loss / epoch.steps if epoch.steps else None


def _with_perplexity(loss: float | None) -> tuple[float | None, float | None]:
    return loss, None if loss is None else perplexity(loss)
