"""The memory that a worker's jobs can have, found without importing torch."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

_CONTAINER_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
_MEBIBYTE: Final = 1 << 20


def device_bytes(
    environment: Mapping[str, str], container_limit: Path = _CONTAINER_LIMIT
) -> dict[str, int]:
    """Bytes by device: of this machine or container for "cpu", and for "cuda" of the one GPU that
    this worker's environment shows it, where there is one.
    """
    gpu = _gpu_bytes(environment.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0])
    return {"cpu": _host_bytes(container_limit)} | ({} if gpu is None else {"cuda": gpu})


def _host_bytes(container_limit: Path) -> int:
    total: int = psutil.virtual_memory().total
    try:
        limit = container_limit.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total  # else "max"


def _gpu_bytes(name: str) -> int | None:
    tool = shutil.which("nvidia-smi")
    if tool is None or not name:
        return None
    query = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")
    try:
        # A driver that hangs must not hang the worker. What does not answer is left out.
        answer = subprocess.run(  # noqa: S603 (a fixed command, found on PATH)
            [tool, "-i", name, *query], capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return int(answer) * _MEBIBYTE if answer.isdecimal() else None
