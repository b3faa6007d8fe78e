"""What a training run reads and writes, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_app.core.compilation import Execution
from trainer_app.core.observer import StopReason
from trainer_app.core.sums import quickest

if TYPE_CHECKING:
    from trainer_app.core.device import Fingerprint
    from trainer_app.core.encode import OnMessage
    from trainer_app.core.performance import Performance
    from trainer_app.core.spec import TrainSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Files that a run reads."""

    corpus: Path
    tokenizer: Path | None = None  # directory of a finished one; None: the base model's, or char
    base_model: Path | None = None  # directory of a finished model to start from


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Places that a run writes."""

    run: Path  # private to this run: checkpoints, staging
    tokens: Path  # cache shared by all runs: token ids by digest
    attempt: int  # fencing token: names of everything written under run carry it
    checkpoint_seconds: float  # between checkpoints
    run_id: str | None = None  # that checkpoints are bound to; None: to their folder alone
    compiled: Path | None = None  # cache shared by all runs: code for GPUs; None: not kept
    max_threads: int = 0  # CPU threads of a fresh run; 0: all cores. A resumed one keeps its own
    confirm: Callable[[], None] = lambda: None  # raises once the run is another attempt's
    is_cancelled: Callable[[], bool] = lambda: False  # asked last, of whoever knows for sure
    is_cut_off: Callable[[], bool] = lambda: False  # should_stop may take hours to answer now
    await_folder: Callable[[OnMessage], None] = lambda _say: None  # until run lies where it did
    summed_by: Callable[[], str] = quickest  # asked before each checkpoint: see core/sums.py

    @property
    def staging(self) -> Path:
        """Where this attempt prepares what is to be published."""
        return self.run / f"staging-{self.attempt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A model, ready to be published, and the figures of its manifest. Losses are in nats."""

    directory: Path
    spec: TrainSpec  # as the last attempt has resolved it
    steps: int
    batch_size: int  # sequences of a forward pass; both as trained with, see Batches
    accumulation: int  # forward passes of a step
    epochs: int  # begun
    early_stopped: bool
    final_loss: float  # of the last training step
    final_perplexity: float
    loss_chain: str | None  # of the reported training losses; None: begun without one
    best_val_loss: float | None  # of the weights in directory; None: no validation split
    test_loss: float | None  # of the weights in directory; None: no test split
    test_perplexity: float | None
    bits_per_byte: float | None  # on the test split
    training_seconds: float  # of all attempts
    device: str
    device_name: str
    precision: str
    threads: int
    tokenizer_sha256: str
    weights_sha256: str
    versions: dict[str, str]
    loads_in_transformers: bool  # AutoModelForCausalLM reads the directory
    fingerprints: tuple[Fingerprint, ...] = ()  # that the run was trained on, in that order
    execution: Execution = field(default_factory=Execution)  # of the last attempt's steps
    performance: Performance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The run was asked to stop before its end."""

    reason: StopReason
    # optimizer steps done; 0, whatever there is to go on from, before that is taken up
    step: int
    checkpoint: Path | None  # None: nothing was written, the one before is the newest
