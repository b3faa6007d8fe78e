"""Deleting without leaving the folder: no name that leads elsewhere, no symbolic link."""

from __future__ import annotations

import os
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from trainer_app.core.files import put_back, temporary_beside

_LEFT_BEHIND_SECONDS: Final = 3_600.0  # since the folder was set aside


def is_file(path: Path) -> bool:
    """Whether this is a regular file, and no link to one."""
    return _kind(path) == stat.S_IFREG


def is_folder(path: Path) -> bool:
    """Whether this is a folder, and no link to one."""
    return _kind(path) == stat.S_IFDIR


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; what links lead to does not count."""
    return sum(
        Path(place, name).lstat().st_size for place, _, names in os.walk(folder) for name in names
    )


def remove_folder(folder: Path) -> None:
    """Delete a folder. It is renamed first: nobody finds half of it."""
    shutil.rmtree(set_aside(folder))  # follows no link, whoever puts one there meanwhile


def set_aside(folder: Path) -> Path:
    """Take a folder away at once; it is the caller's to delete under its new, hidden name."""
    gone = temporary_beside(folder)
    folder.rename(gone)
    return gone


def finish_removals(root: Path) -> None:
    """Delete what was set aside by processes that were killed then.

    What they were about to replace, and had not yet, is put back.
    """
    for path in [*root.glob(".*.tmp"), *root.glob(".*.old")]:
        with suppress(FileNotFoundError):  # another process does the same
            if is_folder(path) and time.time() - path.lstat().st_ctime > _LEFT_BEHIND_SECONDS:
                if path.suffix == ".old":
                    put_back(path)
                else:
                    shutil.rmtree(path)


def _kind(path: Path) -> int | None:
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return None
