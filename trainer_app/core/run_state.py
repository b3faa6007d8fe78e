"""Where a run stands between two steps: all of it that is not tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer_app.core import loss_chain

if TYPE_CHECKING:
    from trainer_app.core.device import Fingerprint


@dataclass(slots=True, kw_only=True)
class RunState:
    """Changed by the loop, kept in each checkpoint's state.json."""

    step: int = 0  # optimizer steps done
    evaluated_step: int = 0  # the last step after which there was an evaluation
    last_loss: float = 0.0  # training loss of the last step
    loss_chain: str | None = loss_chain.START  # None: begun by a version that kept none
    best_val_loss: float | None = None  # None: no evaluation yet
    best_step: int = 0  # the step that reached it
    evaluations_without_improvement: int = 0
    early_stopped: bool = False
    training_seconds: float = 0.0  # of all attempts, up to the checkpoint
    fingerprints: tuple[Fingerprint, ...] = ()  # that it has been trained on, in that order
    tokenizer_sha256: str | None = None  # None: not kept by the version that began it

    def train_on(self, place: Fingerprint) -> None:
        """Keep in mind that steps are taken there from now on."""
        if place not in self.fingerprints:
            self.fingerprints = (*self.fingerprints, place)

    def record_evaluation(self, val_loss: float, *, patience: int, total_steps: int) -> bool:
        """Take an evaluation after ``step``; whether it is strictly better than all before.

        ``patience`` evaluations in a row that are not stop the run early; 0: never. After the last
        of ``total_steps`` there is nothing left to stop.
        """
        self.evaluated_step = self.step
        improved = self.best_val_loss is None or val_loss < self.best_val_loss
        if improved:
            self.best_val_loss = val_loss
            self.best_step = self.step
            self.evaluations_without_improvement = 0
        else:
            self.evaluations_without_improvement += 1
        spent = 0 < patience <= self.evaluations_without_improvement
        self.early_stopped = spent and self.step < total_steps
        return improved
