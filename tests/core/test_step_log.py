"""From losses on the device to reports."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from trainer_app.core import step_log
from trainer_app.core.loss_chain import START
from trainer_app.core.spec import TrainSpec
from trainer_app.core.step import StepResult
from trainer_app.core.step_log import MOST_SKIPPED, StepLog, remedies
from trainer_app.errors import LossNotFinite

if TYPE_CHECKING:
    from tests.training_bench import Recorder


def result(loss: float, norm: float = 1.0) -> StepResult:
    return StepResult(outcome=torch.tensor([loss, norm]), learning_rate=0.001)


def log(observer: Recorder, *, scaled: bool = False, logging_steps: int = 10) -> StepLog:
    return StepLog(
        observer=observer,
        total_steps=25,
        steps_per_epoch=10,
        tokens_per_step=64,
        samples_per_step=4,
        logging_steps=logging_steps,
        scaled=scaled,
    )


def test_each_step_is_reported_the_first_the_last_and_every_so_many_for_the_curve(
    recorder: type[Recorder],
) -> None:
    observer = recorder()
    made = log(observer)
    for step in range(1, 26):
        made.add(step, result(loss=1 / step), notable=step == 13)
    made.flush()
    made.flush()  # nothing left to tell
    assert [report.step for report in observer.steps] == list(range(1, 26))
    curve = [report for report in observer.steps if report.in_curve]
    assert [report.step for report in curve] == [1, 10, 13, 20, 25]
    assert [report.epoch for report in curve] == [0, 0, 1, 1, 2]
    assert [report.step for report in curve if report.to_be_evaluated] == [13]
    assert observer.steps[-1].train_loss == pytest.approx(0.04)
    assert made.last_loss == pytest.approx(0.04)
    assert observer.steps[0].tokens_per_sec == pytest.approx(16 * observer.steps[0].samples_per_sec)


def test_steps_are_read_when_their_time_has_come(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = recorder()
    made = log(observer, logging_steps=1)
    monkeypatch.setattr(step_log, "READ_SECONDS", 3_600.0)
    made.add(1, result(1.0), notable=False)
    assert [report.step for report in observer.steps] == [1]  # the first one at once
    made.add(2, result(1.0), notable=False)
    assert len(observer.steps) == 1
    monkeypatch.setattr(step_log, "READ_SECONDS", 0.0)
    made.add(3, result(1.0), notable=False)
    assert [report.step for report in observer.steps] == [1, 2, 3]


def test_what_a_steady_step_takes_is_the_least_of_those_after_the_first_ones(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = log(recorder())
    monkeypatch.setattr(step_log, "READ_SECONDS", 0.0)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    seen = []
    ends = [3.0, *(3.5 + 0.5 * n for n in range(9)), 8.0, 8.2, 18.2]
    made.restart_clock()
    for step, clock[0] in enumerate(ends, 1):
        made.add(step, result(1.0), notable=False)
        seen.append(made.steady_step_seconds)
    assert seen[:8] == [None] * 8
    assert seen[8:] == pytest.approx([0.5, 0.5, 0.5, 0.2, 0.2])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_step(recorder: type[Recorder], value: float) -> None:
    for scaled in (False, True):
        made = log(recorder(), scaled=scaled)
        made.add(3, result(1.0), notable=False)
        made.add(4, result(value), notable=False)
        with pytest.raises(LossNotFinite, match=f"loss became {value} at step 4"):
            made.flush()


@pytest.mark.parametrize(
    ("failing", "scaled"),
    [(result(math.nan), False), (result(1.0, math.inf), False), (result(math.inf), True)],
)
def test_the_steps_before_one_that_is_not_finite_are_told_with_the_chain_of_a_run_that_goes_on(
    recorder: type[Recorder],
    monkeypatch: pytest.MonkeyPatch,
    failing: StepResult,
    *,
    scaled: bool,
) -> None:
    monkeypatch.setattr(step_log, "READ_SECONDS", 3_600.0)
    whole, observer = recorder(), recorder()
    sound, lost = (log(one, scaled=scaled, logging_steps=2) for one in (whole, observer))
    for step in range(1, 8):
        sound.add(step, result(1 / step), notable=False)
        lost.add(step, failing if step == 6 else result(1 / step), notable=False)
    sound.flush()
    with pytest.raises(LossNotFinite, match="at step 6"):
        lost.flush()
    assert [one.step for one in observer.steps] == [1, 2, 3, 4, 5]
    assert [one.chain for one in observer.steps] == [one.chain for one in whole.steps[:5]]
    assert lost.chain == observer.steps[-1].chain


def test_of_a_first_step_that_is_not_finite_nothing_is_told(recorder: type[Recorder]) -> None:
    observer = recorder()
    with pytest.raises(LossNotFinite, match="at step 1"):
        log(observer).add(1, result(math.nan), notable=False)
    assert observer.steps == []


@pytest.mark.parametrize(
    ("spec", "precision", "advice"),
    [
        ({}, "fp32", ": set a learning_rate below 0.0005"),
        ({}, "fp16", ": set a learning_rate below 0.0005, or precision bf16 or fp32"),
        (
            {"gradient_clipping": 0.0, "pretrained_run_id": "run-1"},
            "bf16",
            ": set a learning_rate below 5e-05, or gradient_clipping 1.0",
        ),
        ({"learning_rate": 0.0}, "fp32", ""),
    ],
)
def test_only_what_a_run_does_not_do_yet_is_recommended(
    recorder: type[Recorder], spec: dict[str, object], precision: str, advice: str
) -> None:
    given = TrainSpec.from_fields({"corpus_sha256": "0" * 64, **spec})
    made = replace(log(recorder()), remedies=remedies(given, precision))
    with pytest.raises(LossNotFinite) as caught:
        made.add(1, result(math.nan), notable=False)
    assert caught.value.message == f"the loss became nan at step 1{advice}"


def test_an_infinite_gradient_fails_but_for_fp16_whose_scaler_skips_the_step(
    recorder: type[Recorder],
) -> None:
    made = log(recorder())
    with pytest.raises(LossNotFinite, match="gradient norm became inf at step 5"):
        made.add(5, result(1.0, math.inf), notable=False)
    observer = recorder()
    scaled = log(observer, scaled=True)
    scaled.add(10, result(1.0, math.inf), notable=False)
    scaled.flush()
    assert observer.steps[0].grad_norm is None


def test_a_run_whose_every_step_overflows_fails_and_one_that_settles_goes_on(
    recorder: type[Recorder],
) -> None:
    settled = log(recorder(), scaled=True)
    for step in range(1, 3 * MOST_SKIPPED):
        skipped = step % MOST_SKIPPED != 0
        settled.add(step, result(1.0, math.inf if skipped else 1.0), notable=False)
    settled.flush()
    lost = log(recorder(), scaled=True)
    for step in range(1, MOST_SKIPPED):
        lost.add(step, result(1.0, math.nan), notable=False)
    lost.flush()
    lost.add(MOST_SKIPPED, result(1.0, math.inf), notable=False)
    with pytest.raises(LossNotFinite, match="overflowed at each of the 100 steps up to step 100"):
        lost.flush()


def test_the_losses_of_the_curve_make_a_chain_that_a_resume_goes_on_with(
    recorder: type[Recorder],
) -> None:
    whole, parts = recorder(), recorder()
    first = log(whole)
    for step in range(1, 26):
        first.add(step, result(float(step)), notable=False)
    first.flush()
    chain: str | None = START
    for begin, end in ((1, 13), (13, 26)):
        part = log(parts)
        part.chain = chain
        for step in range(begin, end):
            part.add(step, result(float(step)), notable=False)
        part.flush()
        chain = part.chain
    chains = [step.chain for step in whole.steps if step.in_curve]
    assert chains == [step.chain for step in parts.steps if step.in_curve]
    assert chains[-1] == first.chain == chain
    assert len(set(chains)) == len(chains) == 4


def test_a_run_that_was_begun_without_a_chain_goes_on_without(recorder: type[Recorder]) -> None:
    observer = recorder()
    made = log(observer)
    made.chain = None
    made.add(10, result(1.0), notable=False)
    made.flush()
    assert [step.chain for step in observer.steps] == [None]
