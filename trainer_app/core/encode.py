"""Tokenizing a corpus once for each (corpus, tokenizer) pair, ever.

``tokens/<corpus>-<tokenizer>/``, named by the first half of both digests, holds

* ``ids.bin``: the token ids of the whole corpus, uint16 or uint32 by the vocabulary,
* ``hashes.bin`` (uint64), ``sizes.bin`` (uint32, bytes), ``counts.bin`` (uint32, tokens): units,
* ``meta.json``.

It appears whole, by one rename. Of several writers at once the first wins.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import numpy as np

from trainer_app.core.corpus import read_units
from trainer_app.core.files import (
    disk_full_named,
    rename_directory,
    temporary_beside,
    write_atomically,
)
from trainer_app.core.stopping import ShouldStop, raise_if_stopped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.contracts import Tokenizer

NEWS_SECONDS: Final = 2.0  # between two messages about progress
ABANDONED_SECONDS: Final = 3_600.0  # since a writer of token ids last wrote

OnMessage = Callable[[str], None]
Read = TypeVar("Read")
Number = TypeVar("Number", np.uint16, np.uint32, np.uint64)
TokenIds: TypeAlias = "NDArray[np.uint16] | NDArray[np.uint32]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A tokenized corpus on disk."""

    directory: Path
    dtype: str  # of the ids: "uint16" or "uint32"
    tokens: int
    units: int
    bytes: int  # of UTF-8 text

    def ids(self) -> TokenIds:
        """The ids (tokens,), memory-mapped."""
        return map_ids(self.directory / "ids.bin", self.dtype)

    def hashes(self) -> NDArray[np.uint64]:
        """Content hash of each unit."""
        return map_array(self.directory / "hashes.bin", np.uint64)

    def sizes(self) -> NDArray[np.uint32]:
        """Bytes of each unit."""
        return map_array(self.directory / "sizes.bin", np.uint32)

    def counts(self) -> NDArray[np.uint32]:
        """Tokens of each unit."""
        return map_array(self.directory / "counts.bin", np.uint32)


def map_ids(path: Path, dtype: str) -> TokenIds:
    """A file of token ids, "uint16" or "uint32"."""
    return map_array(path, np.uint16) if dtype == "uint16" else map_array(path, np.uint32)


def map_array(path: Path, dtype: type[Number]) -> NDArray[Number]:
    """A file of numbers as a read-only array that the system pages in as needed."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)  # mmap refuses an empty file
    return np.memmap(path, dtype=dtype, mode="r")


def encode_corpus(
    corpus: Path,
    tokenizer: Tokenizer,
    root: Path,
    *,
    corpus_sha256: str,
    tokenizer_sha256: str,
    on_message: OnMessage,
    should_stop: ShouldStop,
) -> Encoded:
    """The corpus as token ids under ``root``; the file is read only where they are not there yet.

    Raises StopRequested, the errors of ``read_units``, and DiskFull; nothing is left then.
    """
    directory = root / f"{corpus_sha256[:32]}-{tokenizer_sha256[:32]}"
    if directory.is_dir():
        with suppress(OSError):
            os.utime(directory)  # clean-up goes by the last use
    else:
        root.mkdir(parents=True, exist_ok=True)
        sweep(root)
        temporary = temporary_beside(directory)
        temporary.mkdir()
        try:
            writer = _Writer(temporary, tokenizer, on_message, should_stop)
            writer.write(corpus, corpus_sha256)
            publish_first(temporary, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    meta: dict[str, int | str] = json.loads((directory / "meta.json").read_text())
    return Encoded(
        directory=directory,
        dtype=str(meta["dtype"]),
        tokens=int(meta["tokens"]),
        units=int(meta["units"]),
        bytes=int(meta["bytes"]),
    )


def while_it_stands(read: Callable[[], Read]) -> Read:
    """What ``read`` makes of token ids, from the start where clean-up deletes them meanwhile.

    Once they are open they stay readable, whatever becomes of their names.
    """
    try:
        return read()
    except FileNotFoundError:
        return read()


def sweep(root: Path) -> None:
    """Remove what writers left behind that were killed; a live one writes all the time."""
    for path in root.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # finished or swept by another just now
            written_at = max(part.stat().st_mtime for part in (path, *path.iterdir()))
            if time.time() - written_at > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def publish_first(temporary: Path, directory: Path) -> None:
    """Rename into place, unless another writer of the same content was first."""
    try:
        rename_directory(temporary, directory)
    except OSError:
        if not directory.is_dir():
            raise


class _Writer:
    """One pass over the corpus into a folder."""

    def __init__(
        self,
        directory: Path,
        tokenizer: Tokenizer,
        on_message: OnMessage,
        should_stop: ShouldStop,
    ) -> None:
        self._directory = directory
        self._tokenizer = tokenizer
        self._on_message = on_message
        self._should_stop = should_stop

    def write(self, corpus: Path, sha256: str) -> None:
        dtype = "uint16" if self._tokenizer.vocab_size <= 1 << 16 else "uint32"
        total = Encoded(directory=self._directory, dtype=dtype, tokens=0, units=0, bytes=0)
        tokens = units = read = 0
        news = time.monotonic() + NEWS_SECONDS
        with ExitStack() as stack, disk_full_named(self._directory):
            files = {
                name: stack.enter_context((self._directory / f"{name}.bin").open("wb"))
                for name in ("ids", "hashes", "sizes", "counts")
            }
            for block in read_units(corpus, sha256=sha256):
                raise_if_stopped(self._should_stop)
                encoded = self._tokenizer.encode_batch(block.texts)
                counts = np.fromiter(map(len, encoded), dtype=np.uint32, count=len(encoded))
                count = int(counts.sum())
                ids = np.fromiter(chain.from_iterable(encoded), dtype=dtype, count=count)
                files["ids"].write(ids.data)
                files["hashes"].write(block.hashes.data)
                files["sizes"].write(block.sizes.data)
                files["counts"].write(counts.data)
                tokens, units = tokens + count, units + len(encoded)
                read += int(block.sizes.sum())
                if time.monotonic() >= news:
                    news = time.monotonic() + NEWS_SECONDS
                    self._on_message(f"tokenizing: {read / 1e6:,.1f} MB, {tokens:,} tokens")
        meta = asdict(total) | {"tokens": tokens, "units": units, "bytes": read}
        del meta["directory"]
        write_atomically(self._directory / "meta.json", json.dumps(meta, sort_keys=True).encode())
