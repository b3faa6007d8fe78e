"""Which data root a file or a process is of.

Copies of one have all its files, and its path, too, where each is mounted at the same place.
"""

from __future__ import annotations

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
        # A Redis server goes into its folder, and writes its title over its environment.
        if _is_same(_as_seen_by(pid, process.cwd()), data_root / "broker"):
            return True
        named = process.environ().get("APP__DATA_ROOT")
        return named is not None and _is_same(_as_seen_by(pid, named), data_root)
    except psutil.Error:
        return False


def _as_seen_by(pid: int, path: str) -> Path:
    """In a container of its own, a process may find another folder at the same path."""
    root = Path(f"/proc/{pid}/root")
    return Path(f"{root}{path}") if root.is_dir() else Path(path)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
