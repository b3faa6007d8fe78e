"""The loop: steps, evaluations and checkpoints, in an order that a resume takes up anywhere."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from trainer_app.core.checkpoint import Checkpoints, Snapshot
from trainer_app.core.checkpoint_writer import CheckpointWriter, fits_beside
from trainer_app.core.compilation import Execution
from trainer_app.core.device import (
    Fingerprint,
    peak_memory,
    random_states,
    restore_random_states,
)
from trainer_app.core.evaluate import Evaluation, evaluate
from trainer_app.core.observer import CheckpointReport, EvaluationReport, Observer
from trainer_app.core.performance import Performance, flops_per_token, peak_flops
from trainer_app.core.run_state import RunState
from trainer_app.core.samples import continue_prompt
from trainer_app.core.step import TrainingStep
from trainer_app.core.step_log import StepLog, remedies
from trainer_app.core.stopping import raise_if_stopped
from trainer_app.core.streams import TokenStream
from trainer_app.core.tensors import (
    Tensors,
    copied_to_cpu,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
)
from trainer_app.errors import LossNotFinite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accelerate import Accelerator
    from torch import nn

    from backends.contracts import CausalModel
    from trainer_app.core.batches import Batches
    from trainer_app.core.compilation import Compilation
    from trainer_app.core.data import Data
    from trainer_app.core.encode import OnMessage
    from trainer_app.core.feed import Feed
    from trainer_app.core.spec import TrainSpec

Looked = TypeVar("Looked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run computes and how it calls its prepared parts."""

    accelerator: Accelerator
    model: CausalModel
    prepared: nn.Module  # its LanguageModelLoss after Accelerate
    optimizer: torch.optim.Optimizer
    feed: Feed
    fingerprint: Fingerprint
    compilation: Compilation


def steps_in_all(spec: TrainSpec, batches: Batches) -> int:
    """Optimizer steps of a whole run."""
    return spec.max_steps or spec.num_epochs * batches.steps_per_epoch


class Loop:
    """One attempt's way through a run."""

    def __init__(
        self,
        *,
        spec: TrainSpec,
        data: Data,
        place: Place,
        observer: Observer,
        checkpoints: Checkpoints,
        checkpoint_seconds: float,
        is_cut_off: Callable[[], bool],
        await_folder: Callable[[OnMessage], None],
    ) -> None:
        self.state = RunState()
        self.execution = Execution()
        self.batches = place.feed.batches
        self.total_steps = steps_in_all(spec, self.batches)
        self._spec = spec
        self._data = data
        self._place = place
        self._observer = observer
        self._checkpoints = checkpoints
        self._checkpoint_seconds = checkpoint_seconds
        self._is_cut_off = is_cut_off
        self._await_folder = await_folder
        self._writer = CheckpointWriter(checkpoints.save)
        self._best: Tensors | None = None
        self.torn = False  # the present state is between two: no checkpoint can be made of it
        self._started = time.monotonic()
        self._step = TrainingStep(
            accelerator=place.accelerator,
            model=place.prepared,
            optimizer=place.optimizer,
            feed=place.feed,
            spec=spec,
            total_steps=self.total_steps,
            compilation=place.compilation,
            execution=self.execution,
            tell=observer.on_message,
            should_stop=observer.should_stop,
        )
        self.flops_per_token = flops_per_token(place.model, spec.max_seq_len)
        peak = peak_flops(place.fingerprint.device_name, place.fingerprint.precision)
        self._log = StepLog(
            observer=observer,
            total_steps=self.total_steps,
            steps_per_epoch=self.batches.steps_per_epoch,
            tokens_per_step=self.batches.tokens_per_step,
            samples_per_step=self.batches.accumulation * self.batches.batch_size,
            logging_steps=spec.logging_steps,
            mfu_per_token=None if peak is None else self.flops_per_token / peak,
            remedies=remedies(spec, place.fingerprint.precision),
            scaled=place.accelerator.scaler is not None,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a checkpoint, of whose tensors, which may be mapped files, none is kept."""
        self.state = snapshot.state
        self._best = None if snapshot.best is None else copied_to_cpu(snapshot.best)
        self._log.last_loss = snapshot.state.last_loss
        self._log.chain = snapshot.state.loss_chain
        load_model_tensors(self._place.model, snapshot.model)
        load_optimizer_tensors(self._place.model, self._place.optimizer, snapshot.optimizer)
        if self._place.accelerator.scaler is not None and snapshot.scaler is not None:
            self._place.accelerator.scaler.load_state_dict(snapshot.scaler)  # pragma: needs cuda
        restore_random_states(snapshot.random)

    def run(self) -> None:
        """Train to the last step or to an early stop.

        Raises StopRequested, LossNotFinite, OutOfMemory, DiskFull.
        """
        self._log.restart_clock()
        next_checkpoint = time.monotonic() + self._checkpoint_seconds
        self._place.prepared.train()
        while True:
            # not only after a step: a resume may begin where a stop came before the evaluation
            if self._evaluation_due() and self.state.evaluated_step != self.state.step:
                self._evaluate()
            if self.state.step >= self.total_steps or self.state.early_stopped:
                self._read_losses()
                self.finish_checkpoint()
                return
            if self._is_cut_off():
                self._wait_for_contact()
            raise_if_stopped(self._observer.should_stop)
            self._tell(self._writer.finished())
            if time.monotonic() >= next_checkpoint and self.state.step:
                self._checkpoint_beside()
                next_checkpoint = time.monotonic() + self._checkpoint_seconds
            if self._step.note_gain(self._log.steady_step_seconds):
                self._log.restart_clock()
            if self._step.is_to_compile(self.state.step, self._log.steady_step_seconds):
                self._read_losses()
                with self._in_one_piece():  # it draws random numbers, and takes them back
                    self._step.compile(self.state.step, self._observer.should_stop)
                self._log.time_anew()
            with self._in_one_piece():
                if (result := self._step(self.state.step)) is not None:
                    self.state.step += 1
                    self._log.add(self.state.step, result, notable=self._evaluation_due())

    @contextmanager
    def _in_one_piece(self) -> Iterator[None]:
        """What is done only in part, when StopRequested is raised from a signal, is torn."""
        self.torn = True
        yield
        self.torn = False

    def performance(self) -> Performance:
        """How fast this attempt was, and what it took."""
        step_seconds = self._log.mean_step_seconds()
        tokens_per_sec = self.batches.tokens_per_step / step_seconds if step_seconds else 0.0
        factor = self._log.mfu_per_token
        return Performance(
            tokens_per_sec=tokens_per_sec,
            step_ms=1_000 * step_seconds,
            flops_per_token=self.flops_per_token,
            mfu=None if factor is None else factor * tokens_per_sec,
            peak_memory_bytes=peak_memory(self._place.fingerprint.device),
        )

    def checkpoint(self) -> Path:
        """Write the present state durably."""
        self.finish_checkpoint()
        self._settle()
        self._writer.start(self._snapshot())
        report = self._writer.wait()
        assert report is not None
        self._log.restart_clock()
        self._tell(report)
        return report.path

    def finish_checkpoint(self) -> None:
        """Wait for what is being written, if anything. Raises what kept it from the disk."""
        self._tell(self._writer.wait())

    def close(self) -> None:
        """Wait for what is being written; how it ends is of no use to anybody any more."""
        with suppress(Exception):
            self._writer.wait()

    def _wait_for_contact(self) -> None:
        """Stand still until it is known whether to go on. Raises StopRequested."""
        if self.state.step:
            self.checkpoint()  # who waits for hours may be killed meanwhile
        raise_if_stopped(self._observer.should_stop)
        self._started = time.monotonic()
        self._log.restart_clock()

    def _checkpoint_beside(self) -> None:
        """Write the present state while the training goes on; where memory is short, before."""
        self.finish_checkpoint()  # a slow disk: the one before is still being written
        self._settle()
        snapshot = self._snapshot()
        live = {**snapshot.model, **snapshot.optimizer}
        if not fits_beside(live):
            self.checkpoint()
            return
        self._writer.start(
            replace(
                snapshot,
                model=copied_to_cpu(snapshot.model),
                optimizer=copied_to_cpu(snapshot.optimizer),
            )
        )
        self._log.restart_clock()

    def _settle(self) -> None:
        """Bring the state up to now; there is a place for a checkpoint of it then.

        Raises StopRequested where that is waited for in vain.
        """
        self._read_losses()
        now = time.monotonic()
        self.state.training_seconds += now - self._started
        self._started = now
        self._await_folder(self._observer.on_message)
        self._started = time.monotonic()

    def _snapshot(self) -> Snapshot:
        """The present state; its tensors are those of model and optimizer, not copied."""
        scaler = self._place.accelerator.scaler
        return Snapshot(
            state=replace(self.state),
            fingerprint=self._place.fingerprint,
            model=model_tensors(self._place.model),
            optimizer=optimizer_tensors(self._place.model, self._place.optimizer),
            random=random_states(self._place.fingerprint.device),
            best=self._best,
            scaler=scaler.state_dict() if scaler else None,
        )

    def _tell(self, report: CheckpointReport | None) -> None:
        if report is not None:
            self._observer.on_checkpoint(report)

    def adopt_best(self) -> None:
        """Make the best weights the model's: nothing is trained after that.

        A checkpoint taken afterwards is still right: its resume has no step left to take.
        """
        self.state.training_seconds += time.monotonic() - self._started
        self._started = time.monotonic()
        if self._best is not None:
            with self._in_one_piece():
                load_model_tensors(self._place.model, self._best)

    def evaluate(self, stream: TokenStream, what: str = "held-out text") -> Evaluation:
        """The present weights on a split, or on ``what`` else. Raises LossNotFinite."""
        look = partial(
            evaluate,
            self._place.prepared,
            stream,
            seq_len=self._spec.max_seq_len,
            batch_size=self.batches.batch_size,
            device=self._place.fingerprint.device,
            should_stop=self._observer.should_stop,
        )
        try:
            return self._with_room(look)
        except LossNotFinite as error:
            raise self._not_finite(f"the loss on {what}") from error

    def check_weights(self) -> None:
        """Raise LossNotFinite for weights that no text is held out to be evaluated on."""
        tensors = model_tensors(self._place.model).values()
        if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
            raise self._not_finite("a weight")
        window = self._data.streams.train.ids[: self._spec.max_seq_len + 1]
        self.evaluate(TokenStream(ids=window, bytes=1), "the text that it is trained on")

    def _not_finite(self, what: str) -> LossNotFinite:
        return LossNotFinite(
            f"{what} is not finite after step {self.state.step}{self._log.remedies}"
        )

    def _with_room(self, look: Callable[[], Looked]) -> Looked:
        """What is called; where memory is short, a second time without the recorded step's."""
        with suppress(torch.OutOfMemoryError):  # and forget it: it holds what was computed so far
            return look()
        self._step.make_room()
        return look()

    def _evaluation_due(self) -> bool:
        step = self.state.step
        every = self._spec.eval_steps or self.batches.steps_per_epoch
        at_border = step == self.total_steps or step % every == 0
        return step > 0 and at_border and len(self._data.streams.validation) > 0

    def _evaluate(self) -> None:
        self._read_losses()
        val_loss = self.evaluate(self._data.streams.validation).loss
        with self._in_one_piece():
            improved = self.state.record_evaluation(
                val_loss,
                patience=self._spec.early_stopping_patience,
                total_steps=self.total_steps,
            )
            if improved:
                self._best = copied_to_cpu(model_tensors(self._place.model))
            self._observer.on_evaluation(
                EvaluationReport(
                    step=self.state.step,
                    epoch=self.batches.epoch(self.state.step - 1),
                    train_loss=self._log.last_loss,
                    val_loss=val_loss,
                    best_val_loss=self.state.best_val_loss or 0.0,
                    improved=improved,
                    evaluations_without_improvement=self.state.evaluations_without_improvement,
                )
            )
        for prompt in self._spec.sample_prompts:
            self._with_room(
                partial(
                    continue_prompt,
                    self._place.model,
                    self._data.tokenizer,
                    prompt=prompt,
                    seed=self._spec.seed,
                    device=self._place.fingerprint.device,
                    observer=self._observer,
                )
            )
        self._log.restart_clock()

    def _read_losses(self) -> None:
        with self._in_one_piece():
            self._log.flush()
            self.state.last_loss = self._log.last_loss
            self.state.loss_chain = self._log.chain
