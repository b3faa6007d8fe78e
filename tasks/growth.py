"""Whether the memory of a worker's process grows from job to job, as where something leaks.

A process that lives for weeks would end by the hand of the system then, with a job in it. It ends
between two jobs before that, and a fresh one takes the next.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Final

import psutil
import structlog

# More than a larger job leaves behind in libraries and in the heap: some hundred megabytes.
MOST_BYTES: Final = 2**30
_GIGABYTE: Final = 1e9
# What was never imported holds nothing, and is not to be imported for it.
_TORCH: Final = "trainer_app.core.device"
_MODELS: Final = "tasks.models"

_log = structlog.get_logger(__name__)


def own_bytes() -> dict[str, int]:
    """Bytes that this process has for itself, by device.

    Files that are mapped into it, libraries and weights among them, are the system's to take back.
    """
    memory = psutil.Process().memory_info()
    own = {"cpu": int(memory.rss - getattr(memory, "shared", 0))}
    if _TORCH in sys.modules:
        allocated: Mapping[str, int] = import_module(_TORCH).allocated_bytes()
        own |= allocated
    return own


def used_bytes() -> dict[str, int]:
    """The same without what the models took that it keeps for the next request."""
    used = own_bytes()
    if _MODELS in sys.modules:
        kept: Mapping[str, int] = import_module(_MODELS).kept_bytes()
        for device, size in kept.items():
            used[device] = used.get(device, 0) - size
    return used


def release() -> None:
    """Return to the system what a finished job no longer holds."""
    if _TORCH in sys.modules:
        import_module(_TORCH).release_memory()


class Growth:
    """Of one process, since its first job."""

    def __init__(
        self,
        *,
        used: Callable[[], Mapping[str, int]] = used_bytes,
        release: Callable[[], object] = release,
    ) -> None:
        self._used = used
        self._release = release
        self._first: dict[str, int] = {}

    def is_too_much(self) -> bool:
        """Whether it is more than MOST_BYTES on a device; to be asked after each job."""
        if not self._first:
            self._release()  # what only waits to be given back is not what it began with
        if not self._exceeding():
            return False
        self._release()
        exceeding = self._exceeding()
        for device, used in exceeding.items():
            _log.warning(
                f"what this process has of the memory ({device}) has grown from "
                f"{self._first[device] / _GIGABYTE:.2f} GB after its first job to "
                f"{used / _GIGABYTE:.2f} GB"
            )
        return bool(exceeding)

    def _exceeding(self) -> dict[str, int]:
        used = self._used()
        return {
            device: size
            for device, size in used.items()
            if size - self._first.setdefault(device, size) > MOST_BYTES
        }
