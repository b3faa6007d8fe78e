"""Reading a corpus: one UTF-8 file of any size, cut into units in bounded memory.

A unit is what a split holds out as a whole: a paragraph where blank lines separate paragraphs
often enough, else a line, either with the blank lines that follow it. Units longer than
``LONGEST_UNIT`` characters are cut, at a line end where there is one. Except for those cuts a
unit begins a line that is not blank, where the tokenizers' pre-tokenization has a border too:
so the ids of the units, one after another, are the ids of the whole text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from trainer_app.core.corpus_size import LONGEST_UNIT
from trainer_app.core.files import blocks
from trainer_app.core.units import Units
from trainer_app.errors import CorpusChanged, CorpusEmpty, CorpusNotFound, CorpusNotText

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_BYTES: Final = 1 << 20  # read at once; what is sniffed to choose between the two modes
PARAGRAPH_BYTES: Final = 4_096  # paragraphs longer than this on average: units are lines
FEWEST_PARAGRAPHS: Final = 16  # fewer cannot be split well: units are lines
FEW_LINES: Final = 1_000  # of a block: looked at one by one sooner than all at once
NOT_TEXT: Final = "the corpus must be UTF-8 text"
BYTE_ORDER_MARK: Final = "\ufeff".encode()


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def read_units(path: Path, *, sha256: str) -> Iterator[Units]:
    """The units of a corpus in order, about a mebibyte of text at a time.

    Raises CorpusEmpty, CorpusNotText naming the byte, CorpusNotFound, and, after the last unit,
    CorpusChanged where the bytes read are not those with the given digest.
    """
    digest = hashlib.sha256()
    paragraphs: bool | None = None
    rest = b""
    blank = True
    for data in _read_text(path, digest):
        if paragraphs is None:
            paragraphs = _sniff(data)
        whole = rest + data
        ends, forced = _cut(whole, paragraphs=paragraphs)
        end = int(ends[-1]) if len(ends) else 0
        rest = whole[end:]
        if end:
            blank = blank and whole[:end].decode().isspace()
            yield _units(whole[:end], ends, forced)
    if rest:
        blank = blank and rest.decode().isspace()
        yield _units(rest, np.array([len(rest)]), np.array([False]))
    if digest.hexdigest() != sha256:
        raise CorpusChanged(
            f"the corpus has SHA-256 {digest.hexdigest()}, "
            f"but the run was posted for a text with {sha256}"
        )
    if blank:
        raise CorpusEmpty("the corpus holds no text")


def _read_text(path: Path, digest: _Digest) -> Iterator[bytes]:
    """The file block by block, in whole characters, without a leading byte order mark.

    As far as it goes now: what is appended meanwhile is no part of the text that was meant.
    """
    position = 0  # of the data in the file
    pending = b""  # first bytes of a character cut by the border
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise CorpusNotFound("the corpus is no longer there") from error
    with file:
        for block in chain(blocks(file, BLOCK_BYTES), [b""]):
            digest.update(block)
            data, pending = pending + block, b""
            if b"\0" in data:
                raise CorpusNotText(f"NUL at byte {position + data.index(0)}: {NOT_TEXT}")
            try:
                data.decode()
            except UnicodeDecodeError as error:
                if not block or error.reason != "unexpected end of data":
                    offset = position + error.start
                    raise CorpusNotText(f"invalid UTF-8 at byte {offset}: {NOT_TEXT}") from error
                data, pending = data[: error.start], data[error.start :]
            yield data if position else data.removeprefix(BYTE_ORDER_MARK)
            position += len(data)


@dataclass(frozen=True, slots=True)
class _Lines:
    """Where the lines of a text end, and which are blank."""

    ends: NDArray[np.int64]  # behind the "\n" of each
    blank: NDArray[np.bool_]
    more: bool  # whether a line that is not blank begins behind the last

    @classmethod
    def of(cls, data: bytes) -> _Lines:
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n")) + 1
        if not len(ends):
            return cls(ends, np.zeros(0, dtype=np.bool_), not _is_blank(data))
        starts = np.concatenate([[0], ends[:-1]])
        return cls(ends, _blank(data, starts, ends), not _is_blank(data[int(ends[-1]) :]))

    def unit_ends(self, *, paragraphs: bool) -> NDArray[np.int64]:
        """Behind what lines a unit ends for certain."""
        if not len(self.ends):
            return self.ends
        goes_on = np.append(~self.blank[1:], self.more)  # a line follows that is not blank
        if paragraphs:  # a line that is blank and not the first goes before
            goes_on[0] = False
            goes_on[1:] &= self.blank[1:]
        certain: NDArray[np.int64] = self.ends[goes_on]
        return certain


def _ink() -> bytes:
    """For each byte: 0 of a blank, 2 of what is none, 1 if that depends on its neighbours.

    Blanks outside ASCII begin with C2, E1, E2 or E3.
    """
    ink = bytearray(b"\2" * 256)
    for code in range(128):
        if chr(code).isspace():
            ink[code] = 0
    ink[0x80:0xC0] = b"\1" * 64
    for lead in (0xC2, 0xE1, 0xE2, 0xE3):
        ink[lead] = 1
    return bytes(ink)


_INK: Final = _ink()


def _inked(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data.translate(_INK), dtype=np.uint8)


def _blank(data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which lines are blank; each ends behind its "\n"."""
    text = np.frombuffer(data, dtype=np.uint8)
    # nearly every line that is not blank has ink at its start or before its "\n"
    first = text.take(starts)
    blank = _inked(first.tobytes()) < 2
    longer = np.flatnonzero(blank & (first != ord("\n")))
    blank[longer] = _inked(text.take(ends[longer] - 2).tobytes()) < 2
    unsure = longer[blank[longer]]
    if len(unsure) > FEW_LINES:
        most = np.maximum.reduceat(_inked(data)[: int(ends[-1])], starts)[unsure]
        blank[unsure] = most == 0
        unsure = unsure[most == 1]
    for line in unsure.tolist():
        blank[line] = _is_blank(data[starts[line] : ends[line]])
    return blank


def _is_blank(data: bytes) -> bool:
    """Whether there is nothing, or blanks alone."""
    return not data or data.decode().isspace()


def _sniff(sample: bytes) -> bool:
    """Whether units are paragraphs, from the first block."""
    blank = _Lines.of(sample).blank
    begins = blank[1:].copy()  # the first of the blank lines behind another line
    begins[1:] &= ~blank[1:-1]
    paragraphs = int(begins.sum())
    often = paragraphs * PARAGRAPH_BYTES >= len(sample.decode())
    return often and paragraphs >= FEWEST_PARAGRAPHS


def _cut(data: bytes, *, paragraphs: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where units certainly end within the text, and which of those ends are forced."""
    natural = _Lines.of(data).unit_ends(paragraphs=paragraphs)
    borders = np.concatenate([[0], natural, [len(data)]])
    cuts = [
        cut
        for unit in np.flatnonzero(np.diff(borders) > LONGEST_UNIT).tolist()
        for cut in _forced(data, int(borders[unit]), int(borders[unit + 1]))
    ]
    ends = np.concatenate([natural, np.array(cuts, dtype=np.int64)])
    order = np.argsort(ends)
    return ends[order], order >= len(natural)


def _forced(data: bytes, start: int, end: int) -> list[int]:
    """Where the unit from ``start`` to ``end`` is cut until its rest is short enough."""
    text = data[start:end].decode()
    cuts = []
    position = 0
    while len(text) - position > LONGEST_UNIT:
        line_end = text.rfind("\n", position, position + LONGEST_UNIT)
        cut = position + LONGEST_UNIT if line_end < 0 else line_end + 1
        start += len(text[position:cut].encode())
        cuts.append(start)
        position = cut
    return cuts


def _units(data: bytes, ends: NDArray[np.int64], forced: NDArray[np.bool_]) -> Units:
    return Units(data=data, sizes=np.diff(ends, prepend=0).astype(np.uint32), forced=forced)
