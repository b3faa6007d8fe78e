"""Who holds a job, as its row says: the node, the place where a pid means a process, the pid."""

from __future__ import annotations

import os
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")


def node(hostname: str) -> str:
    """A worker in this place; ``hostname`` is Celery's name of it, such as ``train-0@host``.

    Two containers may have one host name, and so the same names of workers: the place keeps each
    from taking the other's processes for dead.
    """
    return f"{hostname}/{place()}"


def owner(hostname: str) -> str:
    """This process of such a worker."""
    return f"{node(hostname)}:{os.getpid()}"


@cache
def place(proc: Path = _PROC) -> str:
    """Eight digits for this boot of this machine and this namespace of pids.

    Without Linux's /proc there are no such namespaces, and the name of the host has to do.
    """
    try:
        boot = (proc / "sys/kernel/random/boot_id").read_text()
        namespace = (proc / "self/ns/pid").readlink()
    except OSError:
        return "host"
    return sha256(f"{boot}{namespace}".encode()).hexdigest()[:8]
