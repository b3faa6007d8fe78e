"""Batches on the device, in time: from the GPU's own memory, or prepared ahead by threads."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from trainer_app.core.device import DeviceWindows, resident_ids

if TYPE_CHECKING:
    from torch import Tensor

    from trainer_app.core.batches import Batches
    from trainer_app.core.device import DataLoading, ResolvedDevice


class Feed:
    """Inputs and targets (B, T) of each micro-batch, on the device.

    The batches are the same however they are prepared: they are a function of the step. On a GPU
    they lie in the same memory for every step, so that a step can be recorded and replayed.
    """

    def __init__(self, batches: Batches, *, device: ResolvedDevice, loading: DataLoading) -> None:
        self.batches = batches
        resident = resident_ids(batches.ids, device)
        self._on_gpu = (
            None
            if device == "cpu"
            else DeviceWindows(batches, resident, pin=loading.pin_memory)  # pragma: needs cuda
        )
        self._step = 0
        self._ahead: dict[tuple[int, int], Future[tuple[Tensor, Tensor]]] = {}
        self._resident = resident is not None
        self._workers = loading.workers if resident is None else 0
        self._pool = ThreadPoolExecutor(self._workers, "batches") if self._workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    @property
    def is_resident(self) -> bool:
        """Whether all ids were copied to the GPU: no step reads those of the disk any more."""
        return self._resident

    def load(self, step: int) -> None:
        """Turn to a step (from 0): its data is on its way to the device. Best in order."""
        self._step = step
        if self._on_gpu is None:
            return
        if self._on_gpu.resident:  # pragma: needs cuda
            self._on_gpu.load_starts(step)
            return
        for micro in range(self.batches.accumulation):  # pragma: needs cuda
            self._on_gpu.load_windows(micro, *self._prepared(step, micro))

    def micro_batch(self, micro: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T), int64, of a micro-batch of the step that was loaded."""
        if self._on_gpu is not None:
            return self._on_gpu.micro_batch(micro)  # pragma: needs cuda
        return self._prepared(self._step, micro)

    def _prepared(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        if self._pool is None:
            return self.batches.at(step, micro)
        return self._from_pool(self._pool, step, micro)

    def _from_pool(self, pool: ThreadPoolExecutor, step: int, micro: int) -> tuple[Tensor, Tensor]:
        wanted = (step, micro)
        key = wanted
        upcoming = {}
        for _ in range(1 + self._workers):
            # which windows is decided here, in the one thread that knows the epoch's order
            upcoming[key] = self._ahead.get(key) or pool.submit(
                self.batches.gather, self.batches.starts(*key)
            )
            next_micro = key[1] + 1
            key = (key[0], next_micro)
            if next_micro == self.batches.accumulation:
                key = (key[0] + 1, 0)
        self._ahead = upcoming
        return self._ahead.pop(wanted).result()
