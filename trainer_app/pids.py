"""What a process is at, as the system tells it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

_PROC: Final = Path("/proc")
_STARTED: Final = 19  # of the fields of /proc/PID/stat behind the name: in ticks since the boot


def lives(pid: int) -> bool:
    """Whether it can still do anything: one that has ended and was not waited for cannot."""
    return _status(pid) not in {None, psutil.STATUS_ZOMBIE}


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped it, and no other has let it go on."""
    return _status(pid) == psutil.STATUS_STOPPED


def birth(pid: int) -> str | None:
    """What tells a process apart from a later one of the same pid; None of one that is gone.

    A clock that is set meanwhile changes nothing: on Linux it is the time since the boot (proc(5)),
    and which boot that was; elsewhere the system keeps the time of day that it was.
    """
    if not (_PROC / "self/stat").exists():
        started = created(pid)
        return None if started is None else repr(started)
    try:
        # A name may have spaces and brackets in it.
        fields = (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2]
    except OSError:
        return None
    boot = ""
    with suppress(OSError):  # a container may hide it
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{fields.split()[_STARTED]}"


def created(pid: int) -> float | None:
    """When it was started, in seconds since the epoch by the clock as it is set now."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


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
