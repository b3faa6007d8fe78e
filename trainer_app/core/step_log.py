"""Losses from the device to the observer, in batches by time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

from trainer_app.core import loss_chain
from trainer_app.core.observer import Observer, StepReport
from trainer_app.errors import LossNotFinite

if TYPE_CHECKING:
    from trainer_app.core.step import StepResult

READ_SECONDS: Final = 0.25  # between two reads: each makes the CPU wait for the device


@dataclass(slots=True, kw_only=True)
class StepLog:
    """Steps not yet read, and what it takes to report them."""

    observer: Observer
    total_steps: int
    steps_per_epoch: int
    tokens_per_step: int
    samples_per_step: int
    logging_steps: int
    scaled: bool  # fp16: a step with an infinite gradient is skipped by the scaler, no failure
    last_loss: float = 0.0
    chain: str | None = loss_chain.START
    _begun: bool = False
    _waiting: list[tuple[int, StepResult, bool]] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)

    def add(self, step: int, result: StepResult, *, notable: bool) -> None:
        """Take step number ``step``, from 1; ``notable``: to be in the curve in any case."""
        self._waiting.append((step, result, notable))
        # Of the first step everybody wants to hear at once.
        if not self._begun or time.monotonic() - self._since >= READ_SECONDS:
            self._begun = True
            self.flush()

    def flush(self) -> None:
        """Read and report what waits. Raises LossNotFinite, naming the step."""
        if not self._waiting:
            return
        results = [result for _, result, _ in self._waiting]
        losses: list[float] = torch.stack([result.loss for result in results]).tolist()
        norms: list[float] = torch.stack([result.grad_norm for result in results]).tolist()
        now = time.monotonic()
        steps_per_second = len(results) / max(now - self._since, 1e-9)
        reports = []
        for (step, result, notable), loss, norm in zip(self._waiting, losses, norms, strict=True):
            self._check(step, loss, norm)
            self.last_loss = loss
            in_curve = notable or step in (1, self.total_steps) or step % self.logging_steps == 0
            if in_curve and self.chain is not None:
                self.chain = loss_chain.link(self.chain, step, loss)
            reports.append(
                StepReport(
                    step=step,
                    total_steps=self.total_steps,
                    epoch=(step - 1) // self.steps_per_epoch,
                    train_loss=loss,
                    learning_rate=result.learning_rate,
                    grad_norm=norm if math.isfinite(norm) else None,
                    tokens_per_sec=steps_per_second * self.tokens_per_step,
                    samples_per_sec=steps_per_second * self.samples_per_step,
                    in_curve=in_curve,
                    chain=self.chain,
                )
            )
        self._waiting.clear()
        self._since = now
        self.observer.on_steps(reports)

    def restart_clock(self) -> None:
        """Leave what went on since the last read out of the speed of the steps to come."""
        self._since = time.monotonic()

    def _check(self, step: int, loss: float, norm: float) -> None:
        if not math.isfinite(loss):
            raise LossNotFinite(
                f"the loss became {loss} at step {step}: set a smaller learning_rate, "
                f"gradient_clipping 1.0, or precision bf16 or fp32"
            )
        if not math.isfinite(norm) and not self.scaled:
            raise LossNotFinite(
                f"the gradient norm became {norm} at step {step}: set a smaller learning_rate, "
                f"or gradient_clipping 1.0"
            )
