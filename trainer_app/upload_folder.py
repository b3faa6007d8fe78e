"""The folder of uploaded texts: whose turn it is, what is being written, what is not recorded yet.

``<sha256>.txt`` is a corpus, ``.lock`` the lock of ``exclusive``. A text is written under a hidden
name, whose lock tells that its writer lives, and renamed; from then until its row is committed a
mark beside it, ``.<sha256>.unrecorded``, tells that it may have none.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from trainer_app.core.files import temporary_beside
from trainer_app.errors import Unavailable
from trainer_app.file_lock import taken

_LOCK: Final = ".lock"
_LOCKED: Final = "locked-upload"
# Of the version before, whose uploads hold no lock and may go on beside those of this one.
_UNLOCKED: Final = "upload"
# What no lock tells of: a live upload writes all the time.
_ABANDONED_SECONDS: Final = 86_400.0
_MARK: Final = re.compile(r"\.([0-9a-f]{64})\.unrecorded")


def make_folder(folder: Path) -> None:
    """The folder of uploads, where it is not there; raises Unavailable for what is none, OSError.

    Before ``exclusive``, whose lock lies in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise Unavailable("the server's folder of uploads is no folder") from error


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep a file and its row together: no upload between the two halves of a deletion."""
    with (folder / _LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def lock_path(folder: Path) -> Path:
    """What ``exclusive`` locks, for those who do not want to wait."""
    return folder / _LOCK


def corpus_path(folder: Path, sha256: str) -> Path:
    """Where the text of this digest lies."""
    return folder / f"{sha256}.txt"


@contextmanager
def temporary(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file for a text, to be renamed before it is left; else it is removed.

    It is locked all the while, so that no ``sweep`` takes it. Raises OSError.
    """
    while True:
        path = temporary_beside(folder / _LOCKED)
        try:
            with path.open("xb") as file:
                # Else a sweep came between the two.
                if taken(file.fileno()) and os.fstat(file.fileno()).st_nlink:
                    yield path, file
                    return
        finally:
            # Not there once renamed. On a disk that fails, what went wrong first is told; a sweep
            # removes what is left.
            with suppress(OSError):
                path.unlink()


def sweep(folder: Path) -> dict[str, int]:
    """Remove what uploads left behind whose process was killed; its bytes, by name.

    What cannot be removed, or is no file, stays for the next sweep.
    """
    swept: dict[str, int] = {}
    for kind in (_LOCKED, _UNLOCKED):
        for path in folder.glob(f".{kind}.*.tmp"):
            with suppress(OSError):  # finished or swept by another just now, or a broken disk
                # To write: NFS gives no lock of this kind on a file that is open to be read.
                file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    if _is_abandoned(file, holds_lock=kind == _LOCKED):
                        path.unlink()  # by its name, which a text that was renamed has no longer
                        swept[path.name] = os.fstat(file).st_size
                finally:
                    os.close(file)
    return swept


def _is_abandoned(file: int, *, holds_lock: bool) -> bool:
    """Whether nobody writes this temporary any more."""
    if holds_lock:
        with suppress(OSError):  # a file system without locks: time alone tells
            return taken(file)
    return time.time() - os.fstat(file).st_mtime > _ABANDONED_SECONDS


def mark_path(folder: Path, sha256: str) -> Path:
    """The mark of a text that may have no row: made before its file is there.

    Removed, within ``exclusive`` like all of it, once it is known whether it has.
    """
    return folder / f".{sha256}.unrecorded"


def marked(folder: Path) -> list[str]:
    """The digests of all texts with a mark: uploads that go on, or were cut off."""
    named = (_MARK.fullmatch(path.name) for path in folder.glob(".*.unrecorded"))
    return sorted(found[1] for found in named if found is not None)
