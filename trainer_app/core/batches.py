"""Which tokens are in which batch: a function of the stream, the seed and the step.

A resumed run therefore needs no replay, and shuffling costs one permutation an epoch. In each
epoch the stream is cut into windows whose targets do not overlap, from an offset that differs by
epoch, and the windows are taken in random order: all of them. The last step is filled up with the
first ones of its epoch, so that all batches have one shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from trainer_app.core.corpus_size import fewest_tokens
from trainer_app.errors import CorpusTooShort

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from trainer_app.core.encode import TokenIds


class Batches:
    """Random access to the batches of a run, for ever: epochs follow one another.

    With fewer windows than a batch (or accumulation) asks for, batches are smaller.
    """

    def __init__(
        self,
        ids: TokenIds,
        *,
        seq_len: int,
        batch_size: int,
        accumulation: int,
        seed: int,
    ) -> None:
        """Raises CorpusTooShort where the stream holds not even one window."""
        self.seq_len = seq_len  # T
        if len(ids) < fewest_tokens(seq_len):
            raise CorpusTooShort(
                f"the training split has {len(ids)} tokens, but max_seq_len {seq_len} needs at "
                f"least {fewest_tokens(seq_len)}: give more text, or set a smaller max_seq_len"
            )
        self.windows = (len(ids) - 1) // seq_len  # the last target needs one token more
        # Micro-batches a step: no more than it takes to see all windows, or each would be of one.
        self.accumulation = min(accumulation, -(-self.windows // min(batch_size, self.windows)))
        self.batch_size = min(batch_size, -(-self.windows // self.accumulation))  # B
        self.steps_per_epoch = -(-self.windows // (self.batch_size * self.accumulation))
        self.ids = ids
        self._windows_at = sliding_window_view(ids, seq_len + 1)  # takes no memory
        self._seed = seed
        self._epoch = -1
        self._starts = np.empty(0, dtype=np.int64)

    @property
    def tokens_per_step(self) -> int:
        """Targets of one optimizer step."""
        return self.accumulation * self.batch_size * self.seq_len

    def epoch(self, step: int) -> int:
        """The epoch (from 0) to which a step (from 0) belongs."""
        return step // self.steps_per_epoch

    def starts(self, step: int, micro: int) -> NDArray[np.int64]:
        """Where the windows of a micro-batch begin in the stream (B,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._starts = self._shuffled(epoch)
            self._epoch = epoch
        first = (position * self.accumulation + micro) * self.batch_size
        return self._starts.take(np.arange(first, first + self.batch_size), mode="wrap")

    def at(self, step: int, micro: int = 0) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T), int64, of a micro-batch of a step (from 0)."""
        return self.gather(self.starts(step, micro))

    def gather(self, starts_B: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T), int64, of the windows that begin there. Thread-safe."""
        window = torch.from_numpy(self._windows_at[starts_B].astype(np.int64))
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        slack = len(self.ids) - 1 - self.windows * self.seq_len
        offset = int(generator.integers(0, slack, endpoint=True))
        return offset + self.seq_len * generator.permutation(self.windows)
