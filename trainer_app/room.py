"""What a folder's file system has room for: bytes, and files beside them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

# A run makes dozens: its checkpoints, its logs, its model.
_FEW_FILES: Final = 64


def free_bytes(folder: Path) -> int:
    """What is free on the folder's file system; 0 where it takes no more files. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize if _takes_files(found) else 0


def takes_files(folder: Path) -> bool:
    """Whether a job's files could be made there; so they could where nobody can tell."""
    try:
        return _takes_files(os.statvfs(folder))
    except OSError:  # it is away or broken, which is told where it is used
        return True


def _takes_files(found: os.statvfs_result) -> bool:
    # Of no files at all, as on btrfs and network file systems: there is no number to keep to.
    return found.f_files == 0 or found.f_favail >= _FEW_FILES
