"""Tokenizing a corpus once for each (corpus, tokenizer) pair, ever.

``tokens/<corpus>-<tokenizer>/``, named by the first half of both digests, holds

* ``ids.bin``: the token ids of the whole corpus, uint16 or uint32 by the vocabulary,
* ``hashes.bin`` (uint64), ``sizes.bin`` (uint32, bytes), ``counts.bin`` (uint32, tokens): units,
* ``meta.json``: core/token_files.py.

It appears whole, by one rename. Of several writers at once the first wins. What is damaged there
is made anew: ``while_it_stands``.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import numpy as np

from backends.tokenizers.blocks import EncodersDisagree, PieceByPiece
from trainer_app.core.corpus import read_units
from trainer_app.core.files import (
    disk_full_named,
    make_own_folder,
    move_away,
    rename_directory,
    temporary_beside,
)
from trainer_app.core.stopping import ShouldStop, raise_if_stopped
from trainer_app.core.token_files import (
    Damaged,
    Identity,
    Meta,
    State,
    Sum,
    SummedFile,
    check_sizes,
    check_sums,
    examining,
    write_meta,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.contracts import BlockEncoder, Counts, Tokenizer
    from trainer_app.core.units import Units

NEWS_SECONDS: Final = 2.0  # between two messages about progress
BLOCKS_AHEAD: Final = 2  # read while the ids of an earlier one are awaited
ABANDONED_SECONDS: Final = 3_600.0  # since a writer of token ids last wrote
READS: Final = 4  # of token ids; clean-up, a damaged split and damaged ids each cost one

OnMessage = Callable[[str], None]
Read = TypeVar("Read")
_Encoding: TypeAlias = "tuple[Units, Future[tuple[NDArray[np.uint32], Counts]]]"
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
    sums: Mapping[str, Sum] = field(default_factory=dict)  # none: of a version that kept none

    def check(self, should_stop: ShouldStop) -> dict[str, State]:
        """Whether ids and units are still what was written; the files as they were then.

        Without sums, whether the units add up to the whole. Raises Damaged, StopRequested, and
        FileNotFoundError where they were cleaned away.
        """
        with examining(self.directory):
            states = check_sums(self.directory, self.sums, should_stop)
            totals = (self.counts().sum(dtype=np.int64), self.sizes().sum(dtype=np.int64))
            if totals != (self.tokens, self.bytes):
                raise Damaged(self.directory, "the units do not add up to the corpus")
        return states

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

    Raises StopRequested, the errors of ``read_units``, and DiskFull; nothing is left then. Raises
    Damaged where what is there has no meta.json of ours, or another size than that says.
    """
    directory = root / f"{corpus_sha256[:32]}-{tokenizer_sha256[:32]}"
    if directory.is_dir():
        with suppress(OSError):
            os.utime(directory)  # clean-up goes by the last use
    else:
        if make_own_folder(root):
            on_message(f"WARNING: {root} was no folder: it is made anew")
        sweep(root)
        temporary = temporary_beside(directory)
        temporary.mkdir()
        try:
            write = partial(
                _write,
                corpus,
                temporary,
                sha256=corpus_sha256,
                dtype="uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
                on_message=on_message,
                should_stop=should_stop,
            )
            try:
                write(tokenizer.block_encoder())
            except EncodersDisagree as error:
                on_message(f"WARNING: {error}; tokenizing anew with tokenizers, which is slower")
                write(PieceByPiece(tokenizer.encode_batch))
            publish_first(temporary, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    with examining(directory):
        return _opened(directory)


def _opened(directory: Path) -> Encoded:
    meta = Meta.read(directory)
    dtype = meta.fields.get("dtype")
    if dtype not in {"uint16", "uint32"}:
        raise Damaged(directory, "meta.json has no dtype of ids")
    found = Encoded(
        directory=directory,
        dtype=str(dtype),
        tokens=meta.number("tokens"),
        units=meta.number("units"),
        bytes=meta.number("bytes"),
        sums=meta.sums,
    )
    sizes = {
        "ids": found.tokens * np.dtype(found.dtype).itemsize,
        "hashes": found.units * np.dtype(np.uint64).itemsize,
        "sizes": found.units * np.dtype(np.uint32).itemsize,
        "counts": found.units * np.dtype(np.uint32).itemsize,
    }
    check_sizes(directory, sizes)
    return found


def while_it_stands(read: Callable[[], Read], on_message: OnMessage) -> Read:
    """What ``read`` makes of token ids, from the start where clean-up deletes them meanwhile.

    So it is where they are damaged, after what is damaged was removed, but nothing that another run
    has made in its place. Once they are open they stay readable, whatever becomes of their names.
    Raises Damaged where new ones are, too.
    """
    for _ in range(1, READS):
        try:
            return read()
        except FileNotFoundError:
            continue
        except Damaged as damage:
            if _remove(damage):
                on_message(f"WARNING: damaged token ids are made anew: {damage}")
    return read()


def _remove(damage: Damaged) -> bool:
    """Remove what was found damaged; False: another run has, and what is there now is another."""
    directory, identity = damage.directory, damage.identity
    if identity is None or Identity.of(directory) != identity:
        return False
    try:
        taken = move_away(directory)
    except FileNotFoundError:
        return False
    try:
        if Identity.of(taken) == identity:
            return True
        publish_first(taken, directory)  # it was made anew since it was looked at
        return False
    finally:
        shutil.rmtree(taken, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove what writers left behind that were killed; a live one writes all the time."""
    for path in root.glob(".*.tmp"):
        # finished or swept by another just now; a file, which none of them makes, is left alone
        with suppress(FileNotFoundError, NotADirectoryError):
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


def _write(
    corpus: Path,
    directory: Path,
    encoder: BlockEncoder,
    *,
    sha256: str,
    dtype: str,
    on_message: OnMessage,
    should_stop: ShouldStop,
) -> None:
    """One pass over the corpus; raises EncodersDisagree, and what ``encode_corpus`` raises."""
    tokens = units = read = 0
    began = time.monotonic()
    news = began + NEWS_SECONDS
    with ExitStack() as stack, disk_full_named(directory):
        files = {
            name: SummedFile(stack.enter_context((directory / f"{name}.bin").open("wb")))
            for name in ("ids", "hashes", "sizes", "counts")
        }
        for block, ids, counts in _encoded(read_units(corpus, sha256=sha256), encoder):
            raise_if_stopped(should_stop)
            files["ids"].write(ids.astype(dtype).data)
            files["hashes"].write(block.hashes().data)
            files["sizes"].write(block.sizes.data)
            files["counts"].write(counts.data)
            tokens, units = tokens + len(ids), units + len(counts)
            read += len(block.data)
            if time.monotonic() >= news:
                news = time.monotonic() + NEWS_SECONDS
                on_message(f"tokenizing: {read / 1e6:,.1f} MB, {tokens:,} tokens")
    fields: dict[str, int | str] = {"dtype": dtype, "tokens": tokens, "units": units, "bytes": read}
    write_meta(directory, fields, files)
    on_message(
        f"tokenized {read / 1e6:,.1f} MB into {tokens:,} tokens in "
        f"{time.monotonic() - began:,.1f} s by {encoder.name}"
    )


def _encoded(
    blocks: Iterator[Units], encoder: BlockEncoder
) -> Iterator[tuple[Units, NDArray[np.uint32], NDArray[np.uint32]]]:
    """Each block with its ids, and how many each unit has; a thread encodes what is read ahead."""
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as thread:
        waiting: deque[_Encoding] = deque()
        for block in blocks:
            done = thread.submit(encoder.encode, block.data, block.sizes, block.forced)
            waiting.append((block, done))
            if len(waiting) > BLOCKS_AHEAD:
                first, encoding = waiting.popleft()
                ids, counts = encoding.result()
                yield first, ids, counts()
        for block, encoding in waiting:
            ids, counts = encoding.result()
            yield block, ids, counts()
