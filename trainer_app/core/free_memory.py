"""How much memory there is to take, of the machine and of its container. Standard library only."""

from __future__ import annotations

import math
from pathlib import Path


def free_memory(root: Path = Path("/")) -> float:
    """Bytes; infinite where nothing says how many."""
    return min(_free_of_machine(root), _free_of_container(root))


def _free_of_machine(root: Path) -> float:
    try:
        lines = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return math.inf


def _free_of_container(root: Path) -> float:
    folder = root / "sys/fs/cgroup"
    try:
        limit, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # "max": there is no limit
        return math.inf
