"""Which data root a file or a process is of.

Copies of one have all its files, and its path, too, where each is mounted at the same place.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil


def identity(data_root: Path) -> str:
    """Of the folder itself: another one has another, whatever was copied into it from this."""
    found = (data_root / "run").stat()
    return f"{found.st_dev}:{found.st_ino}"


def is_served_by(pid: int, data_root: Path) -> bool:
    """Whether a process of this or another stack, of any version, works on this data root.

    False where that cannot be known.
    """
    try:
        process = psutil.Process(pid)
        # A Redis server writes its title over its environment.
        if _works_in(process, data_root / "broker"):
            return True
        named = process.environ().get("APP__DATA_ROOT")
        return named is not None and _is_same(_as_seen_by(pid, named), data_root)
    except psutil.Error:
        return False


def servers_on(folder: Path) -> list[int]:
    """The pids of the Redis servers whose files these are: they listen, and went into the folder.

    Of those alone that this user may look at.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if _works_in(process, folder) and any(
                one.status == psutil.CONN_LISTEN for one in process.net_connections()
            ):
                found.append(process.pid)
    return found


def _works_in(process: psutil.Process, folder: Path) -> bool:
    return _is_same(_as_seen_by(process.pid, process.cwd()), folder)


def _as_seen_by(pid: int, path: str) -> Path:
    """In a container of its own, a process may find another folder at the same path."""
    root = Path(f"/proc/{pid}/root")
    return Path(f"{root}{path}") if root.is_dir() else Path(path)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
