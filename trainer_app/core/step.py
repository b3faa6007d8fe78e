"""The training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer_app.core.optim import learning_rate

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

    from trainer_app.core.feed import Feed
    from trainer_app.core.spec import TrainSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step leaves on the device: reading it at once would make the CPU wait."""

    loss: Tensor  # (), mean over the step's tokens
    grad_norm: Tensor  # (), before clipping
    learning_rate: float


class TrainingStep:
    """One optimizer step through Accelerate: precision, scaling and accumulation are its part."""

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        model: nn.Module,  # a prepared LanguageModelLoss
        optimizer: torch.optim.Optimizer,
        feed: Feed,
        spec: TrainSpec,
        total_steps: int,
    ) -> None:
        self._accelerator = accelerator
        self._model = model
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = optimizer
        self._feed = feed
        self._spec = spec
        self._total_steps = total_steps
        # clipping to an infinite norm changes nothing, and the norm is reported all the same
        self._max_norm = spec.gradient_clipping or float("inf")

    def __call__(self, step: int) -> StepResult:
        """Take step number ``step``, from 0."""
        rate = learning_rate(self._spec, step, self._total_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        losses, norms = [], []
        for micro in range(self._feed.batches.accumulation):
            with self._accelerator.accumulate(self._model):
                inputs_BT, targets_BT = self._feed.get(step, micro)
                loss = self._model(inputs_BT, targets_BT)
                self._accelerator.backward(loss)
                if self._accelerator.sync_gradients:
                    norms.append(self._accelerator.clip_grad_norm_(self._trained, self._max_norm))
                self._optimizer.step()
                self._optimizer.zero_grad()
            losses.append(loss.detach())
        mean = losses[0] if len(losses) == 1 else sum(losses) / len(losses)
        return StepResult(loss=mean, grad_norm=norms[-1], learning_rate=rate)
