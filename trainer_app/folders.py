"""Whether the folders that the settings name can serve: asked once, before anything is started.

A run would otherwise find out at its end, when its training is done, that its model can be put
nowhere. And whether they are still the same: under a disk that was unmounted there is another
folder of that name, which takes what is written, and hides it when the disk is back.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from trainer_app.errors import SettingsError
from trainer_app.settings import Settings

# Of a folder that cannot serve, whatever the state of its disk. A disk that is full or broken is
# met where it is written to: a process that is started again meanwhile is to come up.
_UNFIT: Final = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,  # a file, where a folder is to be made
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
    }
)
_REMEMBERED: Final = "TRAINER_REMEMBERED_FOLDERS"  # in the environment, for a worker's children


def check_folders(settings: Settings, *, for_a_stack: bool = False) -> None:
    """Make the folders that are not there yet.

    Raises SettingsError, with the variable's name, for one that cannot be made, written to or, for
    the corpora, which are only read, listed. A disk that can only be read stops a stack's start,
    not that of one of its processes: a file system that breaks becomes one.
    """
    unfit = _UNFIT | {errno.EROFS} if for_a_stack else _UNFIT
    paths = settings.paths
    written = {
        "APP__DATA_ROOT": paths.data_root,
        "APP__ARTIFACTS_ROOT": paths.artifacts,
        "APP__RUNS_ROOT": paths.runs,
        "APP__LOGS_ROOT": paths.logs,
    }
    if settings.tracking.enabled:
        written["WANDB_DIR"] = settings.tracking.directory
    for name, folder in written.items():
        _check(name, folder, unfit, is_written=True)
    _check("APP__CORPUS_ROOT", paths.corpus, unfit, is_written=False)


def remember_roots(settings: Settings) -> None:
    """Know artifacts and runs by more than their names, in this process and those it starts."""
    known = {}
    for folder in (settings.paths.artifacts, settings.paths.runs):
        with suppress(OSError):  # of a broken disk: whoever writes to it meets it
            # Left open: of folders that nobody holds some file systems change the numbers.
            known[str(folder)] = _identity(os.fstat(os.open(folder, os.O_RDONLY | os.O_DIRECTORY)))
    os.environ[_REMEMBERED] = json.dumps(known)


def has_been_replaced(root: Path, environment: Mapping[str, str]) -> bool:
    """Whether a folder that was remembered is gone, or another has its name now."""
    known: dict[str, list[int]] = json.loads(environment.get(_REMEMBERED, "{}"))
    if str(root) not in known:
        return False
    try:
        return _identity(root.stat()) != known[str(root)]
    except OSError as error:
        return error.errno in {errno.ENOENT, errno.ENOTDIR}  # any other is told by who uses it


def _identity(folder: os.stat_result) -> list[int]:
    return [folder.st_dev, folder.st_ino]


def _check(name: str, folder: Path, unfit: frozenset[int], *, is_written: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_written:
            with tempfile.TemporaryFile(dir=folder):
                pass
        else:
            os.scandir(folder).close()
    except OSError as error:
        if error.errno in unfit:
            cannot = "cannot be written to" if is_written else "cannot be read"
            raise SettingsError(f"{name}: {folder} {cannot}: {error.strerror}") from error
