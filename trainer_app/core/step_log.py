"""Losses from the device to the observer, in batches by time.

A GPU is handed steps faster than it takes them. It is never waited for but to keep it from running
too far ahead of what it is asked, and it has steps to take while reports are made.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from trainer_app.core import loss_chain
from trainer_app.core.device import StepEnd, read_beside
from trainer_app.core.observer import Observer, StepReport
from trainer_app.errors import LossNotFinite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer_app.core.spec import TrainSpec
    from trainer_app.core.step import StepResult

STEADY_AFTER: Final = 8  # steps of an attempt: libraries are loaded and the step recorded by then
READ_SECONDS: Final = 0.25  # between two reads
# In a row, by fp16's scaler. It halves the scale each time, from 65,536: one that does not settle
# within so many never will, for gradients overflow at any scale.
MOST_SKIPPED: Final = 100
_CLIPPING: Final = 1.0  # a gradient norm that tames most runs
_NARROW: Final = frozenset({"fp16", "fp8"})  # precisions whose range is less than fp32's
AHEAD_SECONDS: Final = 0.05  # of work that a GPU has before it: reports are made meanwhile


def remedies(spec: TrainSpec, precision: str) -> str:
    """What may keep the loss of a run finite, as the end of a message: nothing that it has."""
    found = []
    if spec.peak_learning_rate > 0:
        found.append(f"a learning_rate below {spec.peak_learning_rate:g}")
    if not 0 < spec.gradient_clipping <= _CLIPPING:
        found.append(f"gradient_clipping {_CLIPPING}")
    if precision in _NARROW:
        found.append("precision bf16 or fp32")
    return f": set {', or '.join(found)}" if found else ""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A step that the device has been told to take."""

    step: int
    result: StepResult
    notable: bool
    end: StepEnd


@dataclass(slots=True, kw_only=True)
class StepLog:
    """Steps not yet read, and what it takes to report them."""

    observer: Observer
    total_steps: int
    steps_per_epoch: int
    tokens_per_step: int
    samples_per_step: int
    logging_steps: int
    mfu_per_token: float | None = None  # times tokens a second gives the utilisation
    remedies: str = ""  # what may help against a loss that is not finite
    scaled: bool  # fp16: a step with an infinite gradient is skipped by the scaler, no failure
    last_loss: float = 0.0
    chain: str | None = loss_chain.START
    step_seconds: float | None = None  # what a step took between the last two reads
    steady_step_seconds: float | None = None  # the least of them, once the first steps are over
    steps_timed: int = 0  # after the first of the attempt, which waits for much
    seconds_timed: float = 0.0  # that those took
    _skipped: int = 0  # steps in a row
    _begun: bool = False
    _told: bool = False
    _reported: int = 0
    _waiting: list[_Taken] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def add(self, step: int, result: StepResult, *, notable: bool) -> None:
        """Take step number ``step``, from 1; ``notable``: to be in the curve in any case."""
        self._waiting.append(_Taken(step, result, notable, StepEnd(result.outcome)))
        self._keep_pace()
        # Of the first step everybody wants to hear at once.
        if not self._begun:
            self._begun = True
            self.flush()
        elif time.monotonic() - self._since >= READ_SECONDS:
            self._report(
                sum(1 for _ in takewhile(lambda taken: taken.end.is_past(), self._waiting))
            )

    def flush(self) -> None:
        """Wait for all steps and report them.

        Raises LossNotFinite, naming the step; those before it are reported.
        """
        self._report(len(self._waiting))

    def _keep_pace(self) -> None:
        """Wait while the device has more to do than its share: a stop should be quick."""
        ahead = max(2, int(AHEAD_SECONDS / (self.step_seconds or AHEAD_SECONDS)))
        if len(self._waiting) > ahead:
            self._waiting[-1 - ahead].end.wait()

    def _report(self, count: int) -> None:
        """Report the oldest ``count`` steps."""
        if not count:
            return
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        outcomes = read_beside([taken.result.outcome for taken in ready], ready[-1].end)
        now = time.monotonic()
        self.step_seconds = max(now - self._since, 1e-9) / count
        if self._reported >= STEADY_AFTER:
            self.steady_step_seconds = min(
                self.step_seconds, self.steady_step_seconds or self.step_seconds
            )
        self._reported += count
        if self._told:
            self.steps_timed += count
            self.seconds_timed += count * self.step_seconds
        tokens_per_sec = self.tokens_per_step / self.step_seconds
        reports: list[StepReport] = []
        for taken, (loss, norm) in zip(ready, outcomes, strict=True):
            step = taken.step
            try:
                self._check(step, loss, norm)
            except LossNotFinite:
                self._tell(reports, now)  # what led there is what everybody wants to see
                raise
            self.last_loss = loss
            in_curve = (
                taken.notable or step in (1, self.total_steps) or step % self.logging_steps == 0
            )
            if in_curve and self.chain is not None:
                self.chain = loss_chain.link(self.chain, step, loss)
            reports.append(
                StepReport(
                    step=step,
                    total_steps=self.total_steps,
                    epoch=(step - 1) // self.steps_per_epoch,
                    train_loss=loss,
                    learning_rate=taken.result.learning_rate,
                    grad_norm=norm if math.isfinite(norm) else None,
                    tokens_per_sec=tokens_per_sec,
                    samples_per_sec=self.samples_per_step / self.step_seconds,
                    step_ms=1_000 * self.step_seconds,
                    mfu=self._mfu(tokens_per_sec),
                    in_curve=in_curve,
                    chain=self.chain,
                    to_be_evaluated=taken.notable,
                )
            )
        self._tell(reports, now)

    def _tell(self, reports: Sequence[StepReport], now: float) -> None:
        self._since = now
        self._told = True
        if reports:
            self.observer.on_steps(reports)

    def restart_clock(self) -> None:
        """Leave what went on since the last read out of the speed of the steps to come."""
        self._since = time.monotonic()

    def time_anew(self) -> None:
        """Steps take another time from now on, the first ones longer."""
        self.steady_step_seconds = None
        self._reported = 0
        self.restart_clock()

    def mean_step_seconds(self) -> float:
        """What a step took in this attempt; 0 where it took none."""
        if self.steps_timed:
            return self.seconds_timed / self.steps_timed
        return self.step_seconds or 0.0

    def _mfu(self, tokens_per_sec: float) -> float | None:
        return None if self.mfu_per_token is None else tokens_per_sec * self.mfu_per_token

    def _check(self, step: int, loss: float, norm: float) -> None:
        if not math.isfinite(loss):
            raise LossNotFinite(f"the loss became {loss} at step {step}{self.remedies}")
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        if self._skipped == MOST_SKIPPED:
            raise LossNotFinite(
                f"fp16 overflowed at each of the {MOST_SKIPPED} steps up to step {step}, which "
                f"changed nothing{self.remedies}"
            )
        if self._skipped and not self.scaled:
            raise LossNotFinite(f"the gradient norm became {norm} at step {step}{self.remedies}")
