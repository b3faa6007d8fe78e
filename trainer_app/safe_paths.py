"""Opening files by names that a stranger wrote, never outside one folder.

Each component is opened relative to the one before without following symbolic links, so a folder
that is swapped after a check changes nothing: there is no check apart from the opening.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Final

from trainer_app.errors import CorpusNotFound

MAX_NAME_LENGTH: Final = 1_024  # characters of a whole relative name

LONGEST_ID: Final = 128  # characters


def id_pattern(longest: int) -> str:
    """A regular expression of ids of at most so many characters."""
    return rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{longest - 1}}}"


# Names that no folder on Windows can hold: what is made here may be copied there.
_DEVICES: Final = (
    "[Cc][Oo][Nn]|[Pp][Rr][Nn]|[Aa][Uu][Xx]|[Nn][Uu][Ll]|([Cc][Oo][Mm]|[Ll][Pp][Tt])[0-9]"
)


def new_id_pattern(longest: int) -> str:
    """Of ids that somebody may choose: there may be older ones of other names.

    It means the same in ECMA 262, for the OpenAPI document, which has no flag in a part of one.
    """
    return rf"(?!.*\.\.)(?!.*\.$)(?!({_DEVICES})(\.|$)){id_pattern(longest)}"


ID_PATTERN: Final = id_pattern(LONGEST_ID)
_ID: Final = re.compile(ID_PATTERN)
_NEW_ID: Final = re.compile(new_id_pattern(LONGEST_ID))

# What the kernel answers for names that lead nowhere or to what may not be read. All of them get
# one answer, so that nobody can learn what exists outside the folder.
_REFUSALS: Final = frozenset(
    {
        errno.EACCES,
        errno.EINVAL,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENXIO,
        errno.EPERM,
    }
)
# O_NONBLOCK: opening a FIFO must not wait for a writer that never comes.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


def is_id(text: str) -> bool:
    """Whether the text may name a run, a tokenizer, a corpus or a request: one path component."""
    return _ID.fullmatch(text) is not None and ".." not in text


def is_new_id(text: str) -> bool:
    """Whether somebody may choose it as an id."""
    return _NEW_ID.fullmatch(text) is not None


def is_plain_name(name: str) -> bool:
    """Whether each part of a relative name is an id, as in the files of an artifact."""
    return len(name) <= MAX_NAME_LENGTH and all(map(is_id, name.split("/")))


def open_beneath(root: Path, name: str) -> BinaryIO:
    """Open a regular file by its name relative to ``root``.

    Raises FileNotFoundError, always with the same text, for what is missing and for what is
    refused: absolute names, ``..``, backslashes, drive letters, NUL, symbolic links on the way,
    folders, FIFOs, devices, files that may not be read.
    """
    *folders, leaf = _parts(name)
    try:
        with ExitStack() as stack:
            folder = _open(stack, root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, None)
            for part in folders:
                folder = _open(stack, part, _FOLDER_FLAGS, folder)
            file = _open(stack, leaf, _FILE_FLAGS, folder)
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise _refused()
            return os.fdopen(os.dup(file), "rb")
    except OSError as error:
        if error.errno in _REFUSALS:
            raise _refused() from None
        raise


def open_regular(path: Path) -> BufferedReader:
    """Open a file of our own folders that somebody may have replaced.

    Raises OSError, also for what is no plain file: to open a FIFO would wait for ever, and to read
    a device never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a plain file", str(path))


def resolve(root: Path, name: str) -> Path:
    """The path of a file that ``open_beneath`` opens; raises CorpusNotFound for any other.

    For libraries that want a path. The digest that their reader takes is the guard against a
    file that is swapped afterwards.
    """
    try:
        open_beneath(root, name).close()
    except FileNotFoundError:
        raise CorpusNotFound("there is no such corpus file") from None
    return root / name


def _parts(name: str) -> list[str]:
    if not name or len(name) > MAX_NAME_LENGTH or set(name) & set("\0\\:"):
        raise _refused()
    parts = name.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        raise _refused()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise _refused() from None
    return parts


def _open(stack: ExitStack, name: Path | str, flags: int, folder: int | None) -> int:
    descriptor = os.open(name, flags, dir_fd=folder)
    stack.callback(os.close, descriptor)
    return descriptor


def _refused() -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such file")
