"""The end of a log, and what is appended to it, in memory that no line's length can exhaust."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from trainer_app.safe_paths import open_beneath

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK: Final = 65_536
LONGEST_LINE: Final = 1_048_576  # bytes; a longer one is followed in pieces


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its newline, and the offset in the file of what follows it."""

    text: bytes
    end: int


def _open(path: Path) -> BinaryIO:
    """Raises FileNotFoundError also for a link, a FIFO or a folder in the log's place."""
    return open_beneath(path.parent, path.name)


def last_lines(path: Path, count: int) -> Iterator[bytes]:
    """The last ``count`` lines, as blocks of bytes; nothing where there is no file.

    Raises OSError at once, while there can be another answer.
    """
    try:
        file = _open(path)
    except FileNotFoundError:
        return iter(())
    try:
        end = os.fstat(file.fileno()).st_size
        start = _start_of_last(file, end, count)
        file.seek(start)
    except OSError:
        file.close()
        raise
    return _blocks(file, start, end)


def _blocks(file: BinaryIO, position: int, end: int) -> Iterator[bytes]:
    with file:
        while position < end and (block := file.read(min(_BLOCK, end - position))):
            position += len(block)
            yield block


def start_of_last_lines(path: Path, count: int) -> int:
    """The offset at which the last ``count`` lines start; 0 where there is no file."""
    try:
        with _open(path) as file:
            return _start_of_last(file, os.fstat(file.fileno()).st_size, count)
    except FileNotFoundError:
        return 0


def _start_of_last(file: BinaryIO, end: int, count: int) -> int:
    """Read backwards block by block until ``count`` lines are behind."""
    position = end
    wanted = count
    while position > 0:
        size = min(_BLOCK, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        # The newline that ends the file starts no line.
        cut = size - 1 if position + size == end else size
        while (cut := block.rfind(b"\n", 0, cut)) >= 0:
            wanted -= 1
            if wanted == 0:
                return position + cut + 1
    return 0


def is_line_end(path: Path, offset: int) -> bool:
    """Whether a line, or a piece of one that is too long, ends at the offset; or nothing is there.

    Reads LONGEST_LINE bytes at most.
    """
    if offset == 0:
        return True
    try:
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            if offset >= size:
                return offset == size
            begin = max(0, offset - LONGEST_LINE)
            file.seek(begin)
            before = file.read(offset - begin)
    except FileNotFoundError:
        return False
    return before.endswith(b"\n") or (len(before) == LONGEST_LINE and b"\n" not in before)


def lines_from(path: Path, offset: int, *, whole: bool) -> Iterator[Line]:
    """The lines that are in the file now, from ``offset`` on.

    The last one is left out while no newline ends it, unless ``whole``: nothing will be added.
    """
    try:
        file = _open(path)
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        while line := file.readline(LONGEST_LINE):
            offset += len(line)
            if not (line.endswith(b"\n") or len(line) == LONGEST_LINE or whole):
                return
            yield Line(line.removesuffix(b"\n"), offset)
