"""Files that others wrote, JSON above all: read without trust, and shown without repeating them."""

from __future__ import annotations

import errno
import json
import reprlib
from typing import TYPE_CHECKING, Final

from trainer_app.errors import ModelIncompatible
from trainer_app.safe_paths import open_regular

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path

LARGEST: Final = 64 << 20  # bytes: more than any config or list of shards has
# Nothing there, no plain file, a socket, a link to itself.
_FAULTS_OF_THE_FILE: Final = frozenset({errno.ENOENT, errno.EINVAL, errno.ENXIO, errno.ELOOP})


def read_json(path: Path) -> object:
    """What a file holds; raises ModelIncompatible where there is none that can be read."""
    data = read_plain(path, LARGEST)
    try:
        content: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelIncompatible(f"{path.name} cannot be read: {error}") from error
    return content


def read_plain(path: Path, largest: int) -> bytes:
    """The content of a plain file of at most ``largest`` bytes; raises ModelIncompatible."""
    with open_plain(path) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ModelIncompatible(f"{path.name} has more than {largest} bytes")
    return data


def open_plain(path: Path) -> BufferedReader:
    """A plain file, open; raises ModelIncompatible where there is none, without a wait."""
    try:
        return open_regular(path)
    except OSError as error:
        if error.errno not in _FAULTS_OF_THE_FILE:
            raise  # too many open files, no permission
        raise ModelIncompatible(f"{path.name} cannot be read: {error}") from error


def shown(value: object) -> str:
    """A value for a message, however long it is."""
    return reprlib.repr(value)
