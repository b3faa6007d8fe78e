"""One at a time among the processes of a host."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import ShouldStop, raise_if_stopped

_LOOK_SECONDS: Final = 0.1


@contextmanager
def locked(path: Path, *, should_stop: ShouldStop) -> Iterator[None]:
    """Hold the lock of this name; the kernel frees it when its holder dies.

    Waits until ``should_stop``, and raises StopRequested then. The empty file stays: to remove it
    would let two hold it, one by the old file and one by a new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        while not taken(lock):
            raise_if_stopped(should_stop)
            time.sleep(_LOOK_SECONDS)
        yield
    finally:
        os.close(lock)


def taken(lock: int) -> bool:
    """Lock an open file unless another has it; whether this has it now.

    Raises OSError where the file system has no locks.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def at_once() -> StopReason:
    """A ``should_stop`` for those who do not want to wait at all."""
    return StopReason.CANCEL
