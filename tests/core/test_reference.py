"""The engine's way through a run learns what a plain loop learns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.plain_training import plain_losses
from trainer_app.core import loss

if TYPE_CHECKING:
    from tests.training_bench import Bench, Recorder

# Between losses of a step, of what rounding in another order adds up to over 200 steps.
CLOSE = 1e-5


@pytest.mark.parametrize("family", ["gpt2", "char_lstm"])
def test_the_loss_curve_is_that_of_a_plain_loop(
    bench: Bench, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 1)  # else made at once, for it is so small
    monkeypatch.setattr(loss, "FEWEST_ROWS", 16)  # of 24: the last chunk is smaller
    spec = replace(
        bench.spec,
        model_family=family,
        batch_size=2,
        max_seq_len=12,
        max_steps=200,
        holdout_fraction=0.0,
        test_split_ratio=0.0,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
    )
    observer = recorder()
    bench.fit(spec, observer)
    expected = plain_losses(bench, spec)
    assert len(observer.steps) == len(expected) == 200
    assert expected[-1] < expected[0] - 1.0
    found = [report.train_loss for report in observer.steps]
    assert found == pytest.approx(expected, rel=CLOSE)
