"""The engine's own training step on made-up tokens, its data path included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trainer_app.core.batches import Batches
from trainer_app.core.compilation import Compilation, Execution, resolve_compile
from trainer_app.core.device import (
    ResolvedDevice,
    ResolvedPrecision,
    data_loading,
    deterministic_algorithms,
    fresh_accelerator,
)
from trainer_app.core.feed import Feed
from trainer_app.core.layers import use_kernels
from trainer_app.core.loss import LanguageModelLoss
from trainer_app.core.optim import make_optimizer
from trainer_app.core.step import TrainingStep

if TYPE_CHECKING:
    from backends.contracts import CausalModel
    from trainer_app.core.spec import TrainSpec

TOKENS = 1 << 21  # of the stream
ENDLESS = 1 << 30  # steps of a run that is left when it was measured


@contextmanager
def engine_step(
    model: CausalModel,
    spec: TrainSpec,
    *,
    device: ResolvedDevice = "cpu",
    precision: ResolvedPrecision = "fp32",
    total_steps: int = ENDLESS,
) -> Iterator[TrainingStep]:
    """A step of ``model`` as ``fit`` takes it; where ``torch_compile`` of the spec is on, compiled.

    Without a warm-up: that of a run without an end would have one, too, and the peers have none.
    The learning rate is at its peak from the first step on.
    """

    def tell(message: str) -> None:
        print(f"  {message}", flush=True)

    spec = replace(spec, warmup_ratio=0.0)
    random = np.random.default_rng(0)
    batches = Batches(
        random.integers(0, model.config.vocab_size, TOKENS, dtype=np.uint16),
        seq_len=spec.max_seq_len,
        batch_size=spec.batch_size,
        accumulation=spec.gradient_accumulation_steps,
        seed=spec.seed,
    )
    accelerator = fresh_accelerator(device, precision, batches.accumulation)
    model = model.to(accelerator.device)
    use_kernels(model, precision, tell)
    prepared, optimizer = accelerator.prepare(
        LanguageModelLoss(model, fp8=precision == "fp8"), make_optimizer(model, spec)
    )
    prepared.train()
    with (
        deterministic_algorithms(device, wanted=spec.deterministic),
        Feed(batches, device=device, loading=data_loading(None, None, device)) as feed,
    ):
        choice, why_off = resolve_compile(
            spec.torch_compile, device, precision, deterministic=spec.deterministic
        )
        step = TrainingStep(
            accelerator=accelerator,
            model=prepared,
            optimizer=optimizer,
            feed=feed,
            spec=spec,
            total_steps=total_steps,
            compilation=Compilation(model, choice=choice, why_off=why_off, name=""),
            execution=Execution(),
            tell=tell,
            should_stop=lambda: None,
        )
        if step.is_to_compile(0, None):
            step.compile(0, lambda: None)
        yield step
