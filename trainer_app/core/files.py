"""Files that survive a crash: written under a temporary name, fsynced, renamed.

A reader sees the old content or the new, never a part of it. Standard library only.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from trainer_app.errors import DiskFull, TrainerError
from trainer_app.safe_paths import open_regular

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# Of a place that is there and cannot be used: whoever runs the machine can mend it.
_UNUSABLE: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
# Of a file that is to be read: it is not what was written, whatever the disk still holds of it.
DAMAGE: Final = frozenset(
    {
        errno.ENOENT,
        errno.EIO,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENODATA,
        errno.EINVAL,  # no plain file
        errno.ENXIO,  # a socket
    }
)
_TAKEN: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY})
_BESIDE: Final = re.compile(r"\.(.+)\.[0-9a-f]{16}\.(?:tmp|old)")


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" into DiskFull, which names the file.

    Other errors pass: they are not about space. A disk's fault in a file that is open names no
    file: it gets this one's name.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DiskFull(f"{path} could not be written: {os.strerror(error.errno)}") from error
        if error.errno == errno.EIO and error.filename is None:
            error.filename = str(path)
        raise


def fault_of_the_disk(error: OSError, root: Path) -> TrainerError | None:
    """What a user is told of an error that nobody has named yet: which file, and why.

    ``root`` stands for a file that the error does not tell. None: it is no fault of a disk, or not
    known to be one.
    """
    place = error.filename or root
    if error.errno in _NO_SPACE:
        target = error.filename2 or place  # of a copy or a rename
        return DiskFull(f"{target} could not be written: {error.strerror}")
    if error.errno == errno.EIO or (error.errno in _UNUSABLE and error.filename):
        return TrainerError(f"{place} could not be read or written: {error.strerror}")
    return None


def make_own_folder(path: Path) -> bool:
    """Make a folder that is ours alone, with those above it; whether a file had to go.

    One that stands in its place is removed: what the folder held can be made anew, or was lost when
    the file was put there. A link stays: what it leads to may be away for now. Raises TrainerError
    then, and where a file stands above it, which is not ours.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except NotADirectoryError as error:
        raise TrainerError(f"{path} cannot be made: a file stands above it") from error
    except FileExistsError as error:
        if path.is_symlink():
            raise TrainerError(
                f"{path} leads to {path.readlink()}, which is no folder or is not there"
            ) from error
        with suppress(FileNotFoundError, IsADirectoryError):  # another one has just done it
            path.unlink()
        path.mkdir(parents=True, exist_ok=True)
        return True
    return False


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Put ``data`` at ``path`` durably, in place of what was there; the folder must exist.

    ``mode`` is narrowed by the umask; 0o600 for secrets, which nobody else may read at any time.
    Raises DiskFull where there is no space; the old file is then still whole.
    """
    temporary = temporary_beside(path)
    with disk_full_named(path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)


def temporary_beside(path: Path) -> Path:
    """A new name in the same folder, so that a rename to ``path`` stays on one file system."""
    return _beside(path, "tmp")


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}")


def fsync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with disk_full_named(path):
        _fsync(path, os.O_RDONLY)


def fsync_directory(path: Path) -> None:
    """Wait until the names in a folder, though not the files themselves, are on the disk."""
    with disk_full_named(path):
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def fsync_tree(directory: Path) -> None:
    """Wait until all in a folder, its sub-folders' files and names included, is on the disk."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            fsync_file(Path(folder, name))
        fsync_directory(Path(folder))


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_directory(source: Path, target: Path) -> None:
    """Make a finished folder appear at ``target`` whole; both are on one file system.

    Raises OSError (EEXIST, ENOTEMPTY) where a folder with content stands at ``target``.
    """
    fsync_tree(source)
    _rename_synced(source, target)


def replace_directory(source: Path, target: Path, *, copy: Path | None = None) -> None:
    """Like ``rename_directory``, in place of the folder, if any, that stands at ``target``.

    An error, a ``source`` that is not there above all, leaves the old folder there. A crash between
    the two renames leaves it beside under a hidden name, from which ``put_back`` fetches it. From
    another file system ``source`` is copied first, to ``copy``, which lies beside ``target``; None:
    under a hidden name. Whoever wants it to appear nowhere takes first the source away, then the
    copy.
    """
    fsync_tree(source)  # says nothing of a folder that is gone
    if source.stat().st_dev != target.parent.stat().st_dev:
        _swap_a_copy(source, target, copy or temporary_beside(target))
        return
    try:
        _swap(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # one file system, mounted in two places
            raise
        _swap_a_copy(source, target, copy or temporary_beside(target))


def _swap_a_copy(source: Path, target: Path, copy: Path) -> None:
    try:
        with disk_full_named(target):
            _copy_directory(source, copy)
        fsync_tree(copy)
        source.stat()  # who takes it away from now on finds the copy, too
        _swap(copy, target)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _swap(source: Path, target: Path) -> None:
    old = _beside(target, "old")  # not as what is to be deleted is named: see put_back
    source.stat()  # taken away meanwhile: then what is published stays where it is
    with disk_full_named(target), suppress(FileNotFoundError):
        target.rename(old)
    try:
        _rename_synced(source, target)
    except (OSError, DiskFull):
        if old.exists() and not target.exists():
            old.rename(target)  # where this fails, too, the old one is kept under its other name
        raise
    finally:
        if old.is_symlink() and target.exists():
            old.unlink()  # and nothing of what it leads to
        elif target.exists():
            shutil.rmtree(old, ignore_errors=True)


def put_back(old: Path) -> None:
    """Finish a replacement that was cut off; ``old``, hidden, is what was to be replaced.

    The folder returns to its place where no other has taken it; else it is deleted.
    """
    named = _BESIDE.fullmatch(old.name)
    if named is None:
        return  # no process of ours has named it
    try:
        old.rename(old.with_name(named[1]))
        fsync_directory(old.parent)
    except FileNotFoundError:
        return  # another process does the same
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        shutil.rmtree(old, ignore_errors=True)


def end_replacements(target: Path) -> None:
    """End what other attempts have begun at ``target``, whether they were killed or sleep.

    A folder that was about to take its place goes, so that nobody who wakes can put it there; one
    that was moved out of the way returns.
    """
    for path in list(target.parent.glob(".*")):
        named = _BESIDE.fullmatch(path.name)
        if named is None or named[1] != target.name:
            continue
        if path.suffix == ".old":
            put_back(path)
        else:
            remove_directory(path)


def _copy_directory(source: Path, target: Path) -> None:
    # shutil.copytree words an OSError as text.
    target.mkdir()
    for path in source.iterdir():
        if path.is_dir():
            _copy_directory(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _rename_synced(source: Path, target: Path) -> None:
    with disk_full_named(target):
        source.rename(target)
        fsync_directory(target.parent)


def remove_directory(path: Path) -> None:
    """Take a folder away by one rename, then delete it: nobody can publish what is left of it."""
    with suppress(FileNotFoundError):
        shutil.rmtree(move_away(path), ignore_errors=True)


def move_away(path: Path) -> Path:
    """Rename what is to be deleted, so that nothing is found at ``path``; where it lies then."""
    doomed = temporary_beside(path)
    path.rename(doomed)
    return doomed


def blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """An open file in blocks of at most ``size`` bytes, to the end that it has now.

    What is appended meanwhile is left out: of a file that grows as fast as it is read there would
    be no end.
    """
    left = os.fstat(file.fileno()).st_size - file.tell()
    while left > 0 and (block := file.read(min(size, left))):
        left -= len(block)
        yield block


def sha256_file(path: Path) -> str:
    """The SHA-256 of a plain file's bytes, as 64 lower-case hex digits. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
