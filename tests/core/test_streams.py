"""The token streams of the splits, whatever the units are like."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from backends.contracts import EOS_ID
from trainer_app.core.encode import Encoded
from trainer_app.core.splits import ByteHistogram, Split, SplitRule
from trainer_app.core.streams import CHUNK_TOKENS, split_streams

RULE = SplitRule(seed=1, validation_fraction=0.1, test_fraction=0.2)


def encoded(folder: Path, *, units: int, tokens_each: int) -> Encoded:
    """A tokenized corpus as it lies on disk."""
    chance = np.random.default_rng(0)
    tokens = units * tokens_each
    (np.arange(tokens, dtype=np.uint32) % 60_000).astype(np.uint16).tofile(folder / "ids.bin")
    chance.integers(0, 2**63, units, dtype=np.uint64).tofile(folder / "hashes.bin")
    np.full(units, 3 * tokens_each, dtype=np.uint32).tofile(folder / "sizes.bin")
    np.full(units, tokens_each, dtype=np.uint32).tofile(folder / "counts.bin")
    return Encoded(directory=folder, dtype="uint16", tokens=tokens, units=units, bytes=3 * tokens)


@pytest.mark.parametrize(("units", "tokens_each"), [(200_000, 3), (700, 16_384)])
def test_each_unit_is_in_one_stream_and_runs_of_neighbours_end_with_eos(
    tmp_path: Path, units: int, tokens_each: int
) -> None:
    corpus = encoded(tmp_path, units=units, tokens_each=tokens_each)
    assert corpus.tokens > 2 * CHUNK_TOKENS or units > 100_000  # in several chunks
    histogram = ByteHistogram(RULE)
    histogram.add(corpus.hashes(), corpus.sizes())
    split_of = histogram.plan().assign(corpus.hashes())

    streams = split_streams(corpus, RULE, should_stop=lambda: None)

    ids = np.asarray(corpus.ids()).reshape(units, tokens_each)
    for split in Split:
        chosen = np.flatnonzero(split_of == split)
        runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1)
        expected = [np.append(ids[run].ravel(), np.uint16(EOS_ID)) for run in runs]
        assert np.array_equal(streams.of(split).ids, np.concatenate(expected))
        assert streams.of(split).bytes == len(chosen) * tokens_each * 3


def test_streams_that_the_rule_of_versions_before_has_split_are_not_taken(tmp_path: Path) -> None:
    corpus = encoded(tmp_path, units=30, tokens_each=3)
    (tmp_path / "split-1-0.1-0.2").mkdir()  # damaged, too
    streams = split_streams(corpus, RULE, should_stop=lambda: None)
    assert [streams.of(split).bytes for split in Split] == [189, 27, 54]


def test_a_text_of_one_line_is_split_in_bounded_memory(tmp_path: Path) -> None:
    corpus = encoded(tmp_path, units=4_000, tokens_each=16_384)  # 65 M tokens
    tracemalloc.start()
    try:
        split_streams(corpus, RULE, should_stop=lambda: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000_000
