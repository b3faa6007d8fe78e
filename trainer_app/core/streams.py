"""The token streams of the three splits, made once for each way to split a tokenized corpus.

``<tokenized corpus>/split2-<seed>-<fractions>/`` holds train.bin, validation.bin and test.bin and
meta.json. An [EOS] follows each run of units that are neighbours in the corpus too, so that the
model is told where the text goes on elsewhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from backends.contracts import EOS_ID
from trainer_app.core.encode import Encoded, TokenIds, map_ids, publish_first, sweep
from trainer_app.core.files import disk_full_named, temporary_beside
from trainer_app.core.splits import ByteHistogram, Split, SplitRule
from trainer_app.core.stopping import ShouldStop, raise_if_stopped
from trainer_app.core.token_files import (
    Damaged,
    Meta,
    State,
    SummedFile,
    Watch,
    check_sizes,
    check_sums,
    examining,
    size_of,
    write_meta,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer_app.core.splits import SplitPlan

# Copied at once, whichever is less. Units have about 100 bytes as a rule, but of a text that is one
# line each has 16,384 characters.
CHUNK_UNITS: Final = 1 << 16
CHUNK_TOKENS: Final = 1 << 22  # more than any unit has


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStream:
    """One split: ids in the order of the corpus."""

    ids: TokenIds  # (tokens,), memory-mapped
    bytes: int  # of the UTF-8 text behind them
    watch: Watch | None = None  # None: of a version that kept no sums

    def check(self) -> None:
        """Raise IdsChanged where what was read of it may not be what was written."""
        if self.watch is not None:
            self.watch.check()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """The splits of a corpus; those with fraction 0 are empty."""

    train: TokenStream
    validation: TokenStream
    test: TokenStream

    @property
    def all(self) -> tuple[TokenStream, TokenStream, TokenStream]:
        """In the order in which they are read."""
        return self.train, self.validation, self.test

    def of(self, split: Split) -> TokenStream:
        """The stream of one split."""
        return {
            Split.TRAIN: self.train,
            Split.VALIDATION: self.validation,
            Split.TEST: self.test,
        }[split]


def split_streams(encoded: Encoded, rule: SplitRule, *, should_stop: ShouldStop) -> Streams:
    """The streams of a tokenized corpus under a rule.

    Raises CorpusTooShort where a wanted split would be empty, StopRequested, DiskFull, and Damaged
    where the streams, or what they are to be made of, are not what was written.
    """
    directory = encoded.directory / rule.name
    if not directory.is_dir():
        sweep(encoded.directory)
        temporary = temporary_beside(directory)
        temporary.mkdir()
        try:
            encoded.check(should_stop)
            _write(encoded, rule, temporary, should_stop)
            encoded.check(should_stop)  # while they were read, too, they were what was written
            publish_first(temporary, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    with examining(directory):
        return _opened(encoded, directory, should_stop)


def _opened(encoded: Encoded, directory: Path, should_stop: ShouldStop) -> Streams:
    meta = Meta.read(directory)
    text_bytes = {split.label: meta.number(split.label) for split in Split}
    states: Mapping[str, State] = {}
    if meta.sums:
        check_sizes(directory, {name: found.bytes for name, found in meta.sums.items()})
        states = check_sums(directory, meta.sums, should_stop)
    else:
        _check_plausible(encoded, directory, text_bytes)
    train, validation, test = (
        _mapped(directory / f"{name}.bin", encoded.dtype, size, states.get(name))
        for name, size in text_bytes.items()
    )
    return Streams(train=train, validation=validation, test=test)


def whole_stream(encoded: Encoded, *, should_stop: ShouldStop) -> TokenStream:
    """All of a tokenized text, undivided; raises as ``Encoded.check`` does."""
    states = encoded.check(should_stop)
    path = encoded.directory / "ids.bin"
    return _mapped(path, encoded.dtype, encoded.bytes, states.get("ids"))


def _mapped(path: Path, dtype: str, text_bytes: int, state: State | None) -> TokenStream:
    """``state``: as it was summed; None: it never was."""
    ids = map_ids(path, dtype)
    watch = None if state is None else Watch(path, ids, state)
    return TokenStream(ids=ids, bytes=text_bytes, watch=watch)


def _check_plausible(encoded: Encoded, directory: Path, text_bytes: Mapping[str, int]) -> None:
    """Of a version that kept no sums: streams of the sizes that these ids can give."""
    sizes = {name: size_of(directory, name) for name in text_bytes}
    token_bytes = np.dtype(encoded.dtype).itemsize
    ends = sum(sizes.values()) // token_bytes - encoded.tokens  # [EOS]: one a run of units
    if (
        any(
            size % token_bytes or bool(size) != bool(text_bytes[name])
            for name, size in sizes.items()
        )
        or not 0 <= ends <= encoded.units
        or sum(text_bytes.values()) != encoded.bytes
    ):
        raise Damaged(directory, "the streams have not the sizes of this corpus")


def _write(encoded: Encoded, rule: SplitRule, directory: Path, should_stop: ShouldStop) -> None:
    hashes, sizes = encoded.hashes(), encoded.sizes()
    histogram = ByteHistogram(rule)
    for start in range(0, encoded.units, CHUNK_UNITS):
        histogram.add(hashes[start : start + CHUNK_UNITS], sizes[start : start + CHUNK_UNITS])
    plan = histogram.plan()
    split_bytes: dict[str, int | str] = {}
    files = {}
    for split in Split:
        path = directory / f"{split.label}.bin"
        with disk_full_named(path), path.open("wb") as opened:
            file = files[split.label] = SummedFile(opened)
            split_bytes[split.label] = _copy(encoded, plan, split, file, should_stop)
    write_meta(directory, split_bytes, files)


def _copy(
    encoded: Encoded, plan: SplitPlan, split: Split, file: SummedFile, should_stop: ShouldStop
) -> int:
    """Write the ids of one split; the bytes of text behind them."""
    ids, hashes, sizes, counts = encoded.ids(), encoded.hashes(), encoded.sizes(), encoded.counts()
    text_bytes = 0
    first_token = 0
    for start, end in _chunks(counts):
        raise_if_stopped(should_stop)
        # one unit more, to see whether the last run goes on in the next chunk
        chosen = plan.assign(hashes[start : end + 1]) == split
        goes_on = np.append(chosen[1:], False)[: end - start]
        chosen = chosen[: end - start]
        chunk_counts = counts[start:end].astype(np.int64)
        last_token = first_token + int(chunk_counts.sum())
        kept = ids[first_token:last_token][np.repeat(chosen, chunk_counts)]
        ends = np.cumsum(np.where(chosen, chunk_counts, 0))[chosen & ~goes_on]
        file.write(np.insert(kept, ends, EOS_ID).data)
        text_bytes += int(sizes[start:end][chosen].sum(dtype=np.int64))
        first_token = last_token
    return text_bytes


def _chunks(counts: NDArray[np.uint32]) -> Iterator[tuple[int, int]]:
    """The first unit of each chunk and the one behind its last."""
    start = 0
    while start < len(counts):
        tokens = np.cumsum(counts[start : start + CHUNK_UNITS], dtype=np.int64)
        end = start + int(np.searchsorted(tokens, CHUNK_TOKENS, side="right"))
        yield start, end
        start = end
