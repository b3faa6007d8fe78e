"""One pass over a corpus as it arrives: digest, size, lines, and whether it is text at all."""

from __future__ import annotations

import codecs
import hashlib
from dataclasses import dataclass
from typing import Final

from trainer_app.errors import CorpusEmpty, CorpusNotText

BYTE_ORDER_MARK: Final = "\ufeff"  # at the start of a file: no part of its text


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What is known of a text once it has been read to its end."""

    sha256: str
    bytes: int
    lines: int  # the last one counts whether or not a newline ends it


class TextScan:
    """Fed block by block; holds no more than the block that it is given."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._bytes = 0
        self._newlines = 0
        self._last = b""
        self._at_start = True
        self._has_text = False

    def update(self, block: bytes) -> None:
        """Take the next block; raises CorpusNotText with the offset of the first bad byte."""
        nul = block.find(b"\0")
        if nul >= 0:
            raise CorpusNotText(f"the corpus is not text: NUL at byte {self._bytes + nul}")
        text = self._decode(block, final=False)
        if self._at_start and text:
            text = text.removeprefix(BYTE_ORDER_MARK)
            self._at_start = False
        self._has_text = self._has_text or (not text.isspace() and text != "")
        self._hash.update(block)
        self._bytes += len(block)
        self._newlines += block.count(b"\n")
        self._last = block[-1:] or self._last

    def finish(self) -> Text:
        """The result; raises CorpusEmpty where there was nothing but white space."""
        self._decode(b"", final=True)
        if not self._has_text:
            raise CorpusEmpty(f"the corpus holds no text: {self._bytes} bytes of white space")
        return Text(
            sha256=self._hash.hexdigest(),
            bytes=self._bytes,
            lines=self._newlines + (self._last != b"\n"),
        )

    def _decode(self, block: bytes, *, final: bool) -> str:
        pending, _ = self._decoder.getstate()  # the start of a character that a block cut in two
        try:
            return self._decoder.decode(block, final)
        except UnicodeDecodeError as error:
            offset = self._bytes - len(pending) + error.start
            raise CorpusNotText(
                f"the corpus is not UTF-8 text: bad byte at byte {offset}"
            ) from None
