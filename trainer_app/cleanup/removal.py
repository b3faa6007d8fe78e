"""Deleting without leaving the folder: no name that leads elsewhere, no symbolic link."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from trainer_app.core.files import temporary_beside


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
    gone = temporary_beside(folder)
    folder.rename(gone)
    shutil.rmtree(gone)  # follows no link, whoever puts one there meanwhile


def _kind(path: Path) -> int | None:
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return None
