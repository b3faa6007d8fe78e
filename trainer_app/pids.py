"""What a process is at, as the system tells it."""

from __future__ import annotations

import psutil


def lives(pid: int) -> bool:
    """Whether it can still do anything: one that has ended and was not waited for cannot."""
    return _status(pid) not in {None, psutil.STATUS_ZOMBIE}


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped it, and no other has let it go on."""
    return _status(pid) == psutil.STATUS_STOPPED


def descendants(pid: int) -> list[psutil.Process]:
    """All that it has started, and what those have; none of a process that is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _status(pid: int) -> str | None:
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return None
