"""The training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from trainer_app.core.adamw import ClippedAdamW, why_not
from trainer_app.core.device import random_states, restore_random_states
from trainer_app.core.graphs import RecordedStep
from trainer_app.core.loss import why_unfused
from trainer_app.core.optim import largest_norm, learning_rate, set_learning_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator
    from torch import Tensor, nn

    from trainer_app.core.compilation import Compilation, Execution
    from trainer_app.core.device import ResolvedDevice
    from trainer_app.core.feed import Feed
    from trainer_app.core.spec import TrainSpec


MOST_RECORDED: Final = 128  # batches of a step: each adds hundreds of kernels to its graph
LOGITS: Final = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step leaves on the device: reading it at once would make the CPU wait."""

    outcome: Tensor  # (2,), float32: loss, the mean over the step's tokens; norm before clipping
    learning_rate: float


class _Left(Exception):
    """A step is not gone on with."""


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
        compilation: Compilation,
        execution: Execution,
        tell: Callable[[str], None],
        should_stop: Callable[[], object | None],
    ) -> None:
        self._accelerator = accelerator
        self._model = model
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = optimizer
        self._feed = feed
        self._spec = spec
        self._total_steps = total_steps
        self._max_norm = largest_norm(spec)
        own = getattr(optimizer, "optimizer", optimizer)  # Accelerate's holds it
        self._clipping = own if isinstance(own, ClippedAdamW) else None
        self._compilation = compilation
        self._execution = execution
        self._tell = tell
        self._should_stop = should_stop
        self._leaving = False  # between the micro-batches of the present step, if there is a reason
        self._note_compiling()
        if compilation.decided:
            tell(f"goes uncompiled: {compilation.why_not}")
        self._recorded: RecordedStep | None = None
        if accelerator.device.type == "cuda":  # pragma: needs cuda
            self._recorded = RecordedStep(
                self._compute,
                undo=self._drop_gradients,
                recorded=self._after_recording,
                simplify=self._uncompile,
                execution=execution,
                tell=tell,
            )
            if feed.batches.accumulation > MOST_RECORDED:
                self._recorded.go_without(
                    f"{feed.batches.accumulation} batches are too many for it"
                )
            if (why := why_unfused(LOGITS[str(accelerator.mixed_precision)])) is not None:
                tell(f"the loss has no kernel of its own: {why}")
            if spec.optimizer == "adamw" and (why := why_not()) is not None:
                tell(f"the optimizer has no kernels of its own: {why}")

    def __call__(self, step: int) -> StepResult | None:
        """Take step number ``step``, from 0.

        None: there was a reason to stop between two of its micro-batches, and it was not taken.
        """
        rate = learning_rate(self._spec, step, self._total_steps)
        set_learning_rate(self._optimizer, rate)
        self._feed.load(step)
        self._leaving = self._may_be_left
        states = random_states(self._device) if self._leaving else None
        try:
            outcome = self._compute() if self._recorded is None else self._recorded()
        except _Left:
            self._drop_gradients()
            assert states is not None  # none but a step that may be left is left
            restore_random_states(states)
            return None
        return StepResult(outcome=outcome, learning_rate=rate)

    @property
    def _may_be_left(self) -> bool:
        """Whether the step is of several parts, and not one launch, now or soon."""
        one_launch = self._recorded is not None and self._execution.why_no_graph is None
        return self._feed.batches.accumulation > 1 and not one_launch

    def is_to_compile(self, step: int, step_seconds: float | None) -> bool:
        """Whether it pays to compile the layers before step number ``step``.

        ``step_seconds``: what a step takes as they are; None: not measured yet.
        """
        left = self._total_steps - step
        before = self._compilation.decided
        if not self._compilation.is_due(step_seconds=step_seconds, steps_left=left):
            if self._compilation.decided and not before:
                self._note_compiling()
                self._tell(f"goes uncompiled: {self._compilation.why_not}")
            return False
        return True

    def compile(self, step: int, should_stop: Callable[[], object | None]) -> None:
        """Compile the layers before that step; a reason of ``should_stop`` breaks it off."""
        self._feed.load(step)
        if self._recorded is not None:
            self._recorded.forget()  # pragma: needs cuda
        self._tell(self._compilation.compile(self._rehearse, should_stop))
        self._note_compiling()

    def note_gain(self, step_seconds: float | None) -> bool:
        """Note and tell what compiling has won, once that is known; whether time was spent.

        ``step_seconds``: what a step takes by now; None: not measured yet.
        """
        if step_seconds is None or (gained := self._compilation.gained(step_seconds)) is None:
            return False
        self._tell(gained)
        return True

    def _note_compiling(self) -> None:
        self._execution.compiled = self._compilation.done
        self._execution.why_not_compiled = self._compilation.why_not

    def _uncompile(self, why: str) -> bool:  # pragma: needs cuda
        """Go back to the model as it is, if it was compiled: for a small one, a graph wins more."""
        if not self._compilation.done:
            return False
        self._tell(self._compilation.drop(f"it cannot be recorded as a CUDA graph: {why}"))
        self._note_compiling()
        return True

    @property
    def _device(self) -> ResolvedDevice:
        return "cpu" if self._recorded is None else "cuda"

    def _rehearse(self) -> None:
        """A micro-batch forward and backward, of which no trace is left."""
        states = random_states(self._device)
        try:
            torch.autograd.backward(self._model(*self._feed.micro_batch(0)))
        finally:
            self._drop_gradients()
            restore_random_states(states)

    def make_room(self) -> None:
        """Give back the memory that the recorded step holds; it is recorded anew."""
        if self._recorded is not None:  # pragma: needs cuda
            self._recorded.forget()
            torch.cuda.empty_cache()

    def _drop_gradients(self) -> None:
        for parameter in self._trained:
            parameter.grad = None
        self._accelerator.step = 0  # of its counting of micro-batches: the next begins a step
        if self._accelerator.scaler is not None:  # pragma: needs cuda
            # may have unscaled what is dropped now, and would refuse to do so twice
            self._accelerator.scaler._per_optimizer_states.clear()  # noqa: SLF001

    def _after_recording(self) -> None:  # pragma: needs cuda
        if self._clipping is not None:
            self._clipping.recorded()

    def _clipped(self) -> Tensor:
        """The norm of all gradients before they are clipped: by the optimizer, if it does that."""
        if self._clipping is None:
            return self._accelerator.clip_grad_norm_(self._trained, self._max_norm)
        self._accelerator.unscale_gradients()  # pragma: needs cuda
        return self._clipping.norm  # pragma: needs cuda

    def _compute(self) -> Tensor:
        """Work on the device alone, the same for every step: loss and norm (2,)."""
        losses, norms = [], []
        for micro in range(self._feed.batches.accumulation):
            if micro and self._leaving and self._should_stop() is not None:
                raise _Left
            with self._accelerator.accumulate(self._model), self._compilation.in_use():
                loss = self._model(*self._feed.micro_batch(micro))
                self._accelerator.backward(loss)
                if self._accelerator.sync_gradients:
                    norms.append(self._clipped())
                self._optimizer.step()
                self._optimizer.zero_grad()
            losses.append(loss.detach())
        mean = losses[0] if len(losses) == 1 else sum(losses) / len(losses)
        return torch.stack((mean, norms[-1])).float()
