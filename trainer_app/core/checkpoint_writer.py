"""Checkpoints written beside the training, which goes on meanwhile: one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from trainer_app.core.checkpoint import Snapshot
from trainer_app.core.free_memory import free_memory
from trainer_app.core.observer import CheckpointReport
from trainer_app.core.tensors import Tensors

_SPARE: Final = 4  # times the bytes of a copy that must be free for one to be made


class CheckpointWriter:
    """Runs ``save`` in a thread. What that raises is raised by whoever asks next."""

    def __init__(self, save: Callable[[Snapshot], Path]) -> None:
        self._save = save
        self._thread: threading.Thread | None = None
        self._report: CheckpointReport | None = None
        self._error: BaseException | None = None

    def start(self, snapshot: Snapshot) -> None:
        """Begin to write a snapshot that nobody changes any more. The one before is finished."""
        assert self._thread is None
        # A daemon: a disk that hangs must not keep a process that is to end.
        self._thread = threading.Thread(
            target=self._write, args=(snapshot,), name="checkpoint", daemon=True
        )
        self._thread.start()

    def finished(self) -> CheckpointReport | None:
        """The checkpoint that was finished since this was last asked; does not wait for it."""
        if self._thread is None or self._thread.is_alive():
            return None
        return self.wait()

    def wait(self) -> CheckpointReport | None:
        """The checkpoint that is being written, once it is finished; None: there is none."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        report, error = self._report, self._error
        self._report = self._error = None
        if error is not None:
            raise error
        return report

    def _write(self, snapshot: Snapshot) -> None:
        began = time.monotonic()
        try:
            path = self._save(snapshot)
        except BaseException as error:  # raised again in the thread that trains
            self._error = error
        else:
            self._report = CheckpointReport(
                path=path,
                step=snapshot.state.step,
                seconds=time.monotonic() - began,
                loss_chain=snapshot.state.loss_chain,
            )


def fits_beside(tensors: Tensors, root: Path = Path("/")) -> bool:
    """Whether there is plenty of memory for a copy; also where nothing says how much there is."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return _SPARE * size <= free_memory(root)
