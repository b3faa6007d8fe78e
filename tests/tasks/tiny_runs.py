"""Runs that are trained for real, and in a moment: a tiny model on a small text."""

from __future__ import annotations

from hashlib import sha256
from typing import Final, Protocol

from trainer_app.core.spec import TrainSpec

TEXT: Final = "\n".join(f"line {number} of a text to learn from" for number in range(400)).encode()
TINY: Final = TrainSpec(
    model_family="char_lstm",
    model_size="tiny",
    max_seq_len=16,
    batch_size=4,
    max_steps=4,
    corpus_path="a.txt",
    corpus_sha256=sha256(TEXT).hexdigest(),
)
ENDLESS: Final = 1_000_000  # steps: it is stopped long before


class QueueRun(Protocol):
    """Queues a run that differs from TINY in these fields; returns its id."""

    def __call__(self, **fields: object) -> str: ...
