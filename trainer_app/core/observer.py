"""The one protocol through which the engine speaks to the world.

The lease, metrics, logs, events and progress bars each implement it; a task composes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from trainer_app.core.spec import TrainSpec


class StopReason(StrEnum):
    """Why a loop is asked to stop between two steps."""

    CANCEL = "cancel"  # somebody asked for it: keep a checkpoint, end as cancelled
    DRAIN = "drain"  # the worker shuts down: keep a checkpoint, another goes on
    FENCED = "fenced"  # the lease is lost: write nothing more
    PAUSE = "pause"  # it is held back: keep a checkpoint, go on when it is resumed
    TIMEOUT = "timeout"  # the job's time is over: keep a checkpoint, end as failed


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReport:
    """What is known once model and data are in place, before the first step of an attempt."""

    spec: TrainSpec  # as this attempt has resolved it
    model_family: str
    model_size: str
    parameters: int
    total_epochs: int
    total_steps: int
    first_step: int  # 0, or the step of the checkpoint that it resumes from
    batch_size: int
    learning_rate: float
    max_seq_len: int
    train_tokens: int
    validation_tokens: int
    test_tokens: int
    device: str  # "cpu", "cuda"
    device_name: str
    precision: str  # "fp32", "fp16", "bf16", "fp8"
    threads: int
    resumed_from: str | None  # the checkpoint's name
    loss_chain: str | None = None  # of the losses up to first_step: core/loss_chain.py
    left_out: tuple[str, ...] = ()  # of newer checkpoints, which are damaged: one sentence each


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One optimizer step. Losses are means in nats per predicted token."""

    step: int  # 1-based: optimizer steps done
    total_steps: int
    epoch: int  # 0-based
    train_loss: float
    learning_rate: float
    grad_norm: float | None  # before clipping; None: fp16 overflowed, the step left all as it was
    tokens_per_sec: float
    samples_per_sec: float
    step_ms: float
    mfu: float | None = None  # core/performance.py; None: the processor's peak is not known
    in_curve: bool = True  # one of those that logging_steps keeps
    chain: str | None = None  # of the losses up to here: core/loss_chain.py
    to_be_evaluated: bool = False  # an EvaluationReport of this step follows


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """One evaluation on the validation split."""

    step: int
    epoch: int
    train_loss: float  # of the step before it
    val_loss: float  # nats per predicted token
    best_val_loss: float
    improved: bool
    evaluations_without_improvement: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReport:
    """A finished, fsynced checkpoint."""

    path: Path
    step: int
    seconds: float
    loss_chain: str | None = None  # of the losses up to here: core/loss_chain.py


class Observer(Protocol):
    """Hears of all that happens to a run, in order, from the thread that trains."""

    def on_message(self, message: str) -> None:
        """One sentence for a person: what the run does now."""
        ...

    def on_start(self, start: StartReport) -> None: ...

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        """All steps since the last call, oldest first: read from the device in batches, by time."""
        ...

    def on_evaluation(self, evaluation: EvaluationReport) -> None: ...

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None: ...

    def should_stop(self) -> StopReason | None:
        """Asked between two steps: must be cheap."""
        ...


class Observers:
    """Several observers as one, told in the order given."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        # asked between any two steps: not those who never have a reason
        self._asked = [each for each in observers if type(each).should_stop != Silent.should_stop]

    def on_message(self, message: str) -> None:
        for observer in self._observers:
            observer.on_message(message)

    def on_start(self, start: StartReport) -> None:
        for observer in self._observers:
            observer.on_start(start)

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        for observer in self._observers:
            observer.on_steps(steps)

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        for observer in self._observers:
            observer.on_evaluation(evaluation)

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        for observer in self._observers:
            observer.on_checkpoint(checkpoint)

    def should_stop(self) -> StopReason | None:
        for observer in self._asked:
            if (reason := observer.should_stop()) is not None:
                return reason
        return None


class Silent:
    """An observer that ignores all and never stops a run: a base to override, and for scripts."""

    def on_message(self, message: str) -> None:
        """Ignored."""

    def on_start(self, start: StartReport) -> None:
        """Ignored."""

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        """Ignored."""

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        """Ignored."""

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        """Ignored."""

    def should_stop(self) -> StopReason | None:
        return None
