"""Does a model fit into a worker: refused at the POST where none could ever train it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from backends.memory import training_bytes
from trainer_app.api.errors import Detail, InvalidInput
from trainer_app.core.spec import HALF_PRECISIONS, TrainSpec
from trainer_app.queue import LiveWorker

_GB: Final = 1_000_000_000


def check_memory(spec: TrainSpec, vocab_size: int, workers: Sequence[LiveWorker]) -> None:
    """Raise InvalidInput, with both numbers, for a run larger than the largest of the workers.

    A run that none of them could take by its device is not refused for that: such a worker may
    come.
    """
    wanting = [_wanting(spec, vocab_size, worker) for worker in workers]
    refusals = [reason for reason in wanting if reason is not None]
    if workers and len(refusals) == len(workers):
        _, reason = max(refusals)
        raise InvalidInput([Detail("model_size", reason)])


def check_precision(spec: TrainSpec, workers: Sequence[LiveWorker]) -> None:
    """Raise InvalidInput for half precision wherever there is a GPU, where no worker has one.

    A worker that does not tell its devices may have one.
    """
    if spec.device != "auto" or spec.precision not in HALF_PRECISIONS:
        return
    cpus_alone = [
        bool(worker.memory_bytes) and "cuda" not in worker.memory_bytes for worker in workers
    ]
    if workers and all(cpus_alone):
        reason = f"{spec.precision} needs CUDA, which no live worker has; a CPU trains in fp32"
        raise InvalidInput([Detail("precision", reason)])


def _wanting(spec: TrainSpec, vocab_size: int, worker: LiveWorker) -> tuple[int, str] | None:
    """Why the run does not fit into the worker, and what that has; None: it may fit."""
    device = spec.device
    if device == "auto":
        device = "cuda" if "cuda" in worker.memory_bytes else "cpu"
    available = worker.memory_bytes.get(device)
    if available is None:
        return None
    needed = training_bytes(
        spec.model_family,
        spec.model_size,
        vocab_size=vocab_size,
        max_seq_len=spec.max_seq_len,
        batch_size=spec.batch_size,
        optimizer=spec.optimizer,
        half=device == "cuda" and spec.precision != "fp32",
    )
    if needed <= available:
        return None
    return available, (
        f"training takes at least {needed / _GB:.1f} GB with this max_seq_len and batch_size; "
        f"the largest live worker has {available / _GB:.1f} GB ({device})"
    )
