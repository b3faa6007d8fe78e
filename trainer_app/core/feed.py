"""Batches on the device, in time: from the GPU's own memory, or prepared ahead by threads."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from trainer_app.core.device import gathered, resident_ids, sent_to_device

if TYPE_CHECKING:
    from torch import Tensor

    from trainer_app.core.batches import Batches
    from trainer_app.core.device import DataLoading, ResolvedDevice


class Feed:
    """Inputs and targets (B, T) of each micro-batch, on the device.

    The batches are the same however they are prepared: they are a function of the step.
    """

    def __init__(self, batches: Batches, *, device: ResolvedDevice, loading: DataLoading) -> None:
        self.batches = batches
        self._device = device
        self._pin = loading.pin_memory
        self._resident = resident_ids(batches.ids, device)
        self._ahead: dict[tuple[int, int], Future[tuple[Tensor, Tensor]]] = {}
        self._workers = loading.workers if self._resident is None else 0
        self._pool = ThreadPoolExecutor(self._workers, "batches") if self._workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def get(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        """The micro-batch of a step (from 0); best asked for in order."""
        if self._resident is not None:
            starts_B = self.batches.starts(step, micro)  # pragma: needs cuda
            return gathered(self._resident, starts_B, self.batches.seq_len)  # pragma: needs cuda
        if self._pool is None:
            inputs_BT, targets_BT = self.batches.at(step, micro)
        else:
            inputs_BT, targets_BT = self._from_pool(self._pool, step, micro)
        return (
            sent_to_device(inputs_BT, self._device, pin=self._pin),
            sent_to_device(targets_BT, self._device, pin=self._pin),
        )

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
