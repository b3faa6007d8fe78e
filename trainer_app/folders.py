"""Whether the folders that the settings name can serve: asked once, before anything is started.

A run would otherwise find out at its end, when its training is done, that its model can be put
nowhere. And whether they are there: beneath a disk that is not mounted there is another folder of
that name, which would take what is written, and hide it when the disk is back. So artifacts and
runs each get a small hidden file, and that they got it is kept in the data root: one that lacks it
is not the folder that it is to be, whatever it holds. Whoever wants it to serve puts a file there.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from trainer_app.core.files import write_atomically
from trainer_app.core.stopping import never
from trainer_app.errors import DiskFull, SettingsError
from trainer_app.file_lock import locked
from trainer_app.safe_paths import open_regular
from trainer_app.settings import Settings

MARK: Final = ".trainer-folder"

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
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_LONGEST: Final = 1 << 20  # bytes that are read of a file of ours, which has far fewer
# In the environment, for a worker's children: they know it also where the data root is gone.
_REMEMBERED: Final = "TRAINER_REMEMBERED_FOLDERS"


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
    """Mark artifacts and runs, and know from now on that they are marked.

    In this process, in those it starts, and in the data root, for whoever begins later. One that
    was marked once and is not now stays as it is: see ``is_away``. What cannot be marked, as on a
    disk that can only be read, is not missed when it is gone, and stops no start.
    """
    file = settings.paths.data_root / "run" / "folders.json"
    earlier = _remembered(file)
    marked = {}
    for root in (settings.paths.artifacts, settings.paths.runs):
        place = os.path.realpath(root)
        if place not in earlier:
            try:
                if not has_mark(root):
                    write_atomically(root / MARK, b"")
                (root / MARK).lstat()  # seen, not just thought to be there
            except (OSError, DiskFull):
                continue
        marked[str(root)] = place
    os.environ[_REMEMBERED] = json.dumps([*marked])
    if not earlier.issuperset(marked.values()):
        _remember(file, marked.values())


def is_away(root: Path, environment: Mapping[str, str]) -> bool:
    """Whether a folder that was marked is gone, or another without a mark has its name.

    As what lies beneath a disk.
    """
    known: list[str] = json.loads(environment.get(_REMEMBERED, "[]"))
    return str(root) in known and not has_mark(root)


def waits_for(root: Path) -> str:
    """What is to be said of one that is away."""
    return (
        f"{root} has no {MARK}, as what lies beneath a disk that is not mounted: "
        "waits for it (mount it; where this folder, and no disk on it, is to serve from now on: "
        f"touch {shlex.quote(str(root / MARK))})"
    )


def has_mark(root: Path) -> bool:
    """False for a folder that is not there, too.

    A mark that cannot be looked at is one: whoever uses the folder is told what is wrong with it.
    """
    try:
        (root / MARK).lstat()
    except OSError as error:
        return error.errno not in _ABSENT
    return True


def _remembered(file: Path) -> frozenset[str]:
    """The places that were marked; none where the file is not as it was written."""
    with suppress(OSError, ValueError, RecursionError), open_regular(file) as opened:
        places = json.loads(opened.read(_LONGEST))
        if isinstance(places, list):
            return frozenset(place for place in places if isinstance(place, str))
    return frozenset()


def _remember(file: Path, places: Collection[str]) -> None:
    """Add to what is remembered: one process at a time, where the file system has locks."""
    with suppress(OSError, DiskFull), locked(file.with_suffix(".lock"), should_stop=never):
        all_places = sorted(_remembered(file).union(places))
        write_atomically(file, json.dumps(all_places).encode())


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
