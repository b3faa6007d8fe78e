"""What a process is at, as the system tells it."""

from __future__ import annotations

import psutil


def lives(pid: int) -> bool:
    """Whether it can still do anything: one that has ended and was not waited for cannot."""
    return _status(pid) not in {None, psutil.STATUS_ZOMBIE}


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped it, and no other has let it go on."""
    return _status(pid) == psutil.STATUS_STOPPED


def _status(pid: int) -> str | None:
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return None
