"""Reading a corpus: one UTF-8 file of any size, cut into units in bounded memory.

A unit is what a split holds out as a whole: a paragraph where blank lines separate paragraphs
often enough, else a line, either with the blank lines that follow it. Units longer than
``LONGEST_UNIT`` characters are cut, at a line end where there is one. Except for those cuts a
unit begins a line that is not blank, where the tokenizers' pre-tokenization has a border too:
so the ids of the units, one after another, are the ids of the whole text.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from trainer_app.errors import CorpusChanged, CorpusEmpty, CorpusNotFound, CorpusNotText

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_BYTES: Final = 1 << 20  # read at once; what is sniffed to choose between the two modes
LONGEST_UNIT: Final = 16_384  # characters
PARAGRAPH_BYTES: Final = 4_096  # paragraphs longer than this on average: units are lines
FEWEST_PARAGRAPHS: Final = 16  # fewer cannot be split well: units are lines
NOT_TEXT: Final = "the corpus must be UTF-8 text"

# A border lies at the end of a match. Possessive, so that a gigabyte of blank lines stays linear.
_LINE_END: Final = re.compile(r"\n(?:[^\S\n]*+\n)*+")
_PARAGRAPH_END: Final = re.compile(r"\n(?:[^\S\n]*+\n)++")


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Consecutive units of a corpus; all three have the same length."""

    texts: list[str]
    hashes: NDArray[np.uint64]  # of the text without the blanks around it
    sizes: NDArray[np.uint32]  # bytes of UTF-8


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def read_units(path: Path, *, sha256: str) -> Iterator[Units]:
    """The units of a corpus in order, about a mebibyte of text at a time.

    Raises CorpusEmpty, CorpusNotText naming the byte, CorpusNotFound, and, after the last unit,
    CorpusChanged where the bytes read are not those with the given digest.
    """
    digest = hashlib.sha256()
    borders: re.Pattern[str] | None = None
    rest = ""
    blank = True
    for text in _read_text(path, digest):
        if borders is None:
            borders = _sniff(text)
        texts, rest = _cut(rest + text, borders)
        if texts:
            blank = blank and all(unit.isspace() for unit in texts)
            yield _measured(texts)
    if rest:
        blank = blank and rest.isspace()
        yield _measured([rest])
    if digest.hexdigest() != sha256:
        raise CorpusChanged(
            f"the corpus has SHA-256 {digest.hexdigest()}, "
            f"but the run was posted for a text with {sha256}"
        )
    if blank:
        raise CorpusEmpty("the corpus holds no text")


def _read_text(path: Path, digest: _Digest) -> Iterator[str]:
    """The file's text, block by block, without a leading byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    position = 0  # of the block in the file
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise CorpusNotFound("the corpus is no longer there") from error
    with file:
        while True:
            block = file.read(BLOCK_BYTES)
            digest.update(block)
            if b"\0" in block:
                offset = position + block.index(b"\0")
                raise CorpusNotText(f"NUL at byte {offset}: {NOT_TEXT}")
            pending = len(decoder.getstate()[0])  # first bytes of a character cut by the border
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset = position - pending + error.start
                raise CorpusNotText(f"invalid UTF-8 at byte {offset}: {NOT_TEXT}") from error
            if position == 0:
                text = text.removeprefix("\ufeff")
            if not block:
                return
            position += len(block)
            yield text


def _sniff(sample: str) -> re.Pattern[str]:
    """Whether units end with paragraphs or with lines, from the first block."""
    paragraphs = sum(1 for _ in _PARAGRAPH_END.finditer(sample))
    often = paragraphs * PARAGRAPH_BYTES >= len(sample)
    return _PARAGRAPH_END if often and paragraphs >= FEWEST_PARAGRAPHS else _LINE_END


def _cut(text: str, borders: re.Pattern[str]) -> tuple[list[str], str]:
    """The units that certainly end within the text, and the rest."""
    ends = [match.end() for match in borders.finditer(text)]
    if ends and (ends[-1] == len(text) or text[ends[-1] :].isspace()):
        ends.pop()  # more blank lines may follow
    units: list[str] = []
    start = 0
    for end in ends:
        while end - start > LONGEST_UNIT:
            start = _force(text, start, units)
        units.append(text[start:end])
        start = end
    while len(text) - start > LONGEST_UNIT:
        start = _force(text, start, units)
    return units, text[start:]


def _force(text: str, start: int, units: list[str]) -> int:
    """Append the first part of a unit that is too long; where the next part starts."""
    line_end = text.rfind("\n", start, start + LONGEST_UNIT)
    end = start + LONGEST_UNIT if line_end < 0 else line_end + 1
    units.append(text[start:end])
    return end


def _measured(texts: list[str]) -> Units:
    # surrogates cannot occur: the text was decoded strictly
    raw = [text.encode() for text in texts]
    digests = b"".join(hashlib.blake2b(text.strip(), digest_size=8).digest() for text in raw)
    return Units(
        texts=texts,
        hashes=np.frombuffer(digests, dtype="<u8").astype(np.uint64),
        sizes=np.fromiter(map(len, raw), dtype=np.uint32, count=len(raw)),
    )
