"""Batches as a function of stream, seed and step."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from trainer_app.core.batches import Batches
from trainer_app.core.device import DataLoading
from trainer_app.core.feed import Feed
from trainer_app.errors import CorpusTooShort


def batches(tokens: int, *, seed: int = 0, batch: int = 4, accumulation: int = 1) -> Batches:
    ids = np.arange(tokens, dtype=np.uint16)
    return Batches(ids, seq_len=8, batch_size=batch, accumulation=accumulation, seed=seed)


def starts_of_epoch(made: Batches, epoch: int) -> list[int]:
    first = epoch * made.steps_per_epoch
    return [
        int(start)
        for step in range(first, first + made.steps_per_epoch)
        for micro in range(made.accumulation)
        for start in made.starts(step, micro)
    ]


def test_targets_are_the_inputs_moved_on_by_one() -> None:
    inputs_BT, targets_BT = batches(100).at(2)
    assert inputs_BT.shape == targets_BT.shape == (4, 8)
    assert inputs_BT.dtype == torch.int64
    assert torch.equal(targets_BT, inputs_BT + 1)  # the stream counts up


def test_an_epoch_holds_each_window_once_and_windows_share_no_target() -> None:
    made = batches(8 * 16 + 1 + 5, accumulation=2)
    assert (made.windows, made.steps_per_epoch) == (16, 2)
    for epoch in range(4):
        starts = sorted(starts_of_epoch(made, epoch))
        offset = starts[0]
        assert 0 <= offset <= 5
        assert starts == [offset + 8 * n for n in range(16)]
        assert starts[-1] + 8 < 8 * 16 + 1 + 5


@pytest.mark.parametrize(
    ("windows", "batch", "accumulation"),
    [(127, 64, 1), (127, 8, 4), (65, 64, 1), (18, 4, 100), (17, 8, 3), (3, 4, 1), (1, 1, 1)],
)
def test_an_epoch_leaves_no_window_out_and_is_filled_up_with_its_own_first_ones(
    windows: int, batch: int, accumulation: int
) -> None:
    made = batches(8 * windows + 1 + 3, batch=batch, accumulation=accumulation)
    per_step = made.batch_size * made.accumulation
    assert windows <= made.steps_per_epoch * per_step < windows + per_step
    for epoch in (0, 1, 5):
        starts = starts_of_epoch(made, epoch)
        assert len(starts) == made.steps_per_epoch * per_step  # all batches have one shape
        assert len(set(starts[:windows])) == windows
        assert starts[windows:] == starts[: len(starts) - windows]


def test_epochs_differ_in_order_and_offset_and_seeds_in_all() -> None:
    made = batches(8 * 64 + 1 + 7)
    assert starts_of_epoch(made, 0) != starts_of_epoch(made, 1)
    assert len({min(starts_of_epoch(made, epoch)) for epoch in range(12)}) > 1
    assert starts_of_epoch(made, 0) == starts_of_epoch(batches(8 * 64 + 1 + 7), 0)
    assert starts_of_epoch(made, 0) != starts_of_epoch(batches(8 * 64 + 1 + 7, seed=1), 0)


def test_any_batch_can_be_had_without_those_before_it() -> None:
    made, fresh = batches(400), batches(400)
    in_order = [made.at(step)[0] for step in range(30)]
    for step in (29, 3, 17):
        assert torch.equal(fresh.at(step)[0], in_order[step])
    assert made.epoch(made.steps_per_epoch - 1) == 0
    assert made.epoch(made.steps_per_epoch) == 1


def test_fewer_windows_than_a_batch_make_a_smaller_batch() -> None:
    made = batches(8 * 3 + 1, batch=4)
    assert (made.batch_size, made.accumulation, made.steps_per_epoch) == (3, 1, 1)


def test_accumulation_that_asks_for_more_than_all_windows_keeps_the_batches_large() -> None:
    made = batches(8 * 3 + 1, batch=4, accumulation=5)
    assert (made.batch_size, made.accumulation, made.steps_per_epoch) == (3, 1, 1)
    assert made.tokens_per_step == 24
    made = batches(8 * 18 + 1, batch=4, accumulation=100)
    assert (made.batch_size, made.accumulation, made.steps_per_epoch) == (4, 5, 1)
    made = batches(8 * 17 + 1, batch=8, accumulation=100)
    assert (made.batch_size, made.accumulation, made.steps_per_epoch) == (6, 3, 1)
    made = batches(8 * 18 + 1, batch=4, accumulation=4)
    assert (made.batch_size, made.accumulation, made.steps_per_epoch) == (4, 4, 2)


def test_a_stream_without_one_window_is_refused_with_both_numbers() -> None:
    assert batches(9).windows == 1
    with pytest.raises(CorpusTooShort, match="has 8 tokens, but max_seq_len 8 needs at least 9"):
        batches(8)


def test_a_batch_takes_little_more_memory_than_its_own_numbers() -> None:
    ids = np.zeros(100_000, dtype=np.uint16)
    made = Batches(ids, seq_len=1_000, batch_size=64, accumulation=1, seed=0)
    tracemalloc.start()
    try:
        made.at(0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * 64 * 1_001 * 8  # int64; the places of all tokens would be as much again


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_prepare_the_same_batches(workers: int) -> None:
    plain = batches(300, accumulation=2)
    loading = DataLoading(workers=workers, pin_memory=False)
    with Feed(batches(300, accumulation=2), device="cpu", loading=loading) as feed:
        for step in [*range(12), 40, 41, 7]:  # as after a resume
            feed.load(step)
            for micro in range(2):
                for got, expected in zip(
                    feed.micro_batch(micro), plain.at(step, micro), strict=True
                ):
                    assert torch.equal(got, expected)
