"""A run's curve on Weights & Biases, where the operator has switched it on.

W&B may be slow, away or broken, and is never worth a run: everything that calls it happens in a
process of its own, told by a thread behind a bounded queue. The first failure is a warning in the
run's log, and ends the tracking of that attempt alone.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

from trainer_app.core.observer import EvaluationReport, Silent, StartReport, StepReport, StopReason
from trainer_app.core.perplexity import perplexity
from trainer_app.core.run_files import Finished, Stopped
from trainer_app.tracking.wire import Begin, End, Resolved, Step, Steps, encode

if TYPE_CHECKING:
    from types import TracebackType

    from trainer_app.core.spec import TrainSpec
    from trainer_app.log import JobLog
    from trainer_app.settings import Tracking

_COMMAND: Final = "from trainer_app.tracking.child import main; main()"
_WAITING: Final = 100_000  # steps that may wait for W&B: some 50 MB
_CLOSE_SECONDS: Final = 5.0  # for what waits at the end; uploads go on while the worker lives
_INIT_SECONDS: Final = 60.0
_LONGEST_ANSWER: Final = 4_096  # bytes

_Report = StartReport | Sequence[StepReport] | EvaluationReport


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
        self._memory = memory
        self._begin = Begin(
            parent=os.getpid(),
            run_id=run_id,
            project=settings.project,
            directory=str(settings.directory),
            memory=str(memory),
            spec=asdict(spec),
            init_seconds=init_seconds,
        )
        self._close_seconds = close_seconds
        self._queue: queue.SimpleQueue[_Report | End] = queue.SimpleQueue()
        self._room = waiting  # for so many more steps
        self._most_waiting = waiting
        self._lock = threading.Lock()
        self._off = not settings.enabled
        self._end = End(exit_code=1)
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
            self._queue.put(self._end)
            self._thread.join(self._close_seconds)
        # The run's log is about to be closed: a thread that goes on must not write to it.
        with self._lock:
            if self._thread.is_alive() and self._log is not None and not self._off:
                self._log.warning("Weights & Biases has not taken everything yet")
            self._log = None

    def on_start(self, start: StartReport) -> None:
        self._put(start, 0)

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        self._put(steps, len(steps))

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        self._put(evaluation, 1)

    def end(self, outcome: Finished | Stopped) -> None:
        """How the attempt ended; one of which this is never said has failed."""
        if isinstance(outcome, Stopped):
            goes_on = outcome.reason in (StopReason.DRAIN, StopReason.FENCED, StopReason.PAUSE)
            self._end = End(exit_code=1, goes_on=goes_on)
        else:
            self._end = End(exit_code=0, summary=_summary(outcome))

    def _put(self, report: _Report, steps: int) -> None:
        """Never waits: whoever calls is the training."""
        if self._off:
            return
        with self._lock:
            self._room -= steps
            is_full = self._room < 0
        if is_full:
            self._switch_off(f"it has not taken {self._most_waiting} steps in time")
            # what was dropped would be missing in its middle; the run itself goes on
            self._queue.put(End(exit_code=1, goes_on=True))
        else:
            self._queue.put(report)

    def _switch_off(self, reason: str) -> None:
        with self._lock:
            if self._log is not None and not self._off:
                self._log.warning(f"Weights & Biases is switched off: {reason}")
            self._off = True

    def _run(self) -> None:
        try:
            problem = self._tell()
        except OSError as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            self._switch_off(problem)

    def _tell(self) -> str:
        """Hand all to a process that speaks to W&B; what that had to complain of, or nothing."""
        with subprocess.Popen(  # noqa: S603 (our own command)
            [sys.executable, "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            with suppress(BrokenPipeError), child.stdin:  # it has ended: its answer tells why
                self._feed(child.stdin)
            answer = child.stdout.read(_LONGEST_ANSWER).decode("utf-8", "replace")
        if not answer and child.returncode:
            return f"its process ended with {child.returncode}"
        return answer

    def _feed(self, stream: IO[bytes]) -> None:
        stream.write(encode(self._begin))
        stream.flush()
        while not isinstance(item := self._queue.get(), End):
            if isinstance(item, StartReport):
                message, steps = encode(Resolved(choices=item.spec.worker_choices)), 0
            elif isinstance(item, EvaluationReport):
                message, steps = encode(item), 1
            else:
                message, steps = encode(Steps(steps=[Step.of(step) for step in item])), len(item)
            stream.write(message)
            stream.flush()
            with self._lock:
                self._room += steps
        stream.write(encode(item))


def _summary(finished: Finished) -> dict[str, object]:
    """What the end of a run has beside its table of epochs."""
    summary: dict[str, object] = {
        "global_step": finished.steps,
        "early_stopped": finished.early_stopped,
    }
    if finished.test_loss is not None:  # there is a test split
        summary["test_loss"] = finished.test_loss
        summary["test_ppl"] = perplexity(finished.test_loss)
    if (performance := finished.performance) is not None:
        summary["peak_memory_bytes"] = performance.peak_memory_bytes
        summary["flops_per_token"] = performance.flops_per_token
        summary["flops_source"] = performance.flops_source
    return summary
