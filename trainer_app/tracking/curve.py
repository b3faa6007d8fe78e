"""The rows of a run's curve, each given out once, whatever an attempt redoes."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from trainer_app.core.files import write_atomically
from trainer_app.core.observer import EvaluationReport
from trainer_app.core.perplexity import perplexity
from trainer_app.tracking.wire import Step

Row = dict[str, float]
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

    def step(self, report: Step) -> None:
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
        # Whom W&B kept waiting may come when the run has ended and its folder is gone: nobody will
        # want to know then, and the folder is not to come back.
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
