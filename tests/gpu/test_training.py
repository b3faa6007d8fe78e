"""Training on a GPU."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import pytest
import torch

from backends.loading import load_model
from backends.registry import MODEL_FAMILIES
from trainer_app.core import device
from trainer_app.core.device import (
    out_of_memory_named,
    recommended_batch_size,
    recommended_batch_size_for,
    resolve_device,
    resolve_precision,
)
from trainer_app.core.fit import Finished, Stopped
from trainer_app.core.spec import OPTIMIZERS, OptimizerName, RequestedPrecision
from trainer_app.errors import OutOfMemory

if TYPE_CHECKING:
    from tests.training_bench import Bench, Recorder

MakeRecorder: TypeAlias = "type[Recorder]"
PRECISIONS: tuple[RequestedPrecision, ...] = ("fp32", "bf16", "fp16", "auto")


def test_auto_is_cuda_in_fp16() -> None:
    place = resolve_device("auto")
    assert (place, resolve_device("cuda"), resolve_device("cpu")) == ("cuda", "cuda", "cpu")
    assert resolve_precision("auto", place) == "fp16"
    assert recommended_batch_size(4, place) == 8
    assert recommended_batch_size_for("gpt2", 4, place) == 32


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_a_run_learns_and_ends_in_every_precision(
    bench: Bench, recorder: MakeRecorder, family: str, precision: RequestedPrecision
) -> None:
    observer = recorder()
    spec = replace(bench.spec, model_family=family, precision=precision, sample_prompts=("one",))
    outcome = bench.fit(spec, observer)
    assert isinstance(outcome, Finished)
    assert outcome.device == "cuda"
    assert outcome.precision == ("fp16" if precision == "auto" else precision)
    assert outcome.device_name == torch.cuda.get_device_name()
    assert observer.steps[-1].train_loss < observer.steps[0].train_loss - 0.5
    norms = [report.grad_norm for report in observer.steps if report.grad_norm is not None]
    assert all(map(math.isfinite, norms))
    assert len(norms) > len(observer.steps) / 2  # None: the scaler of fp16 has yet to settle
    assert outcome.best_val_loss == pytest.approx(outcome.test_loss, abs=0.3)
    assert len([text for text in observer.messages if text.startswith("sample")]) == 3
    loaded = load_model(outcome.directory)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in loaded.parameters())


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_precisions_agree_about_what_is_learnt(
    bench: Bench, recorder: MakeRecorder, family: str
) -> None:
    losses = []
    for precision in PRECISIONS[:3]:
        spec = replace(bench.spec, model_family=family, precision=precision)
        outcome = bench.fit(spec, recorder(), run=precision)
        assert isinstance(outcome, Finished)
        assert outcome.best_val_loss is not None
        losses.append(outcome.best_val_loss)
    # after 60 steps the curve is still steep: rounding moves a run along it by a step or two
    assert losses == pytest.approx([losses[0]] * 3, rel=0.1)


@pytest.mark.parametrize("precision", PRECISIONS[:3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(
    bench: Bench, recorder: MakeRecorder, optimizer: OptimizerName, precision: RequestedPrecision
) -> None:
    spec = replace(
        bench.spec,
        model_family="char_lstm",  # the family with dropout
        optimizer=optimizer,
        precision=precision,
        gradient_accumulation_steps=2,
    )
    whole = recorder()
    bench.fit(spec, whole, run="whole")
    stopped = bench.fit(spec, recorder(stop_after=30), run="stopped")
    assert isinstance(stopped, Stopped)
    resumed = recorder()
    outcome = bench.fit(spec, resumed, run="stopped", attempt=2)
    assert isinstance(outcome, Finished)
    assert resumed.starts[0].first_step == stopped.step > 0
    expected = {report.step: report.train_loss for report in whole.steps}
    for report in resumed.steps:
        assert report.train_loss == pytest.approx(expected[report.step], rel=0.02)


@pytest.mark.parametrize("pinned", [True, False])
def test_ids_too_many_for_the_gpu_s_memory_are_sent_batch_by_batch(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    resident = recorder()
    spec = replace(bench.spec, max_steps=10, precision="fp32")
    bench.fit(spec, resident, run="resident")
    monkeypatch.setattr(device, "RESIDENT_SHARE", 1 << 60)
    sent = recorder()
    bench.fit(replace(spec, data_pin_memory=pinned), sent, run="sent")
    for ours, theirs in zip(sent.steps, resident.steps, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)


def test_a_model_that_does_not_fit_is_out_of_memory_with_the_numbers() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"gpt2 xl does not fit into the GPU's [\d.]+ GiB"),
        out_of_memory_named("gpt2 xl", "cuda"),
    ):
        torch.empty(1 << 44, dtype=torch.uint8, device="cuda")


def test_a_run_on_the_gpu_leaves_a_run_on_the_cpu_after_it_alone(
    bench: Bench, recorder: MakeRecorder
) -> None:
    spec = replace(bench.spec, device="cpu", max_steps=5)
    before = bench.fit(spec, recorder(), run="before")
    bench.fit(replace(bench.spec, max_steps=5), recorder(), run="between")
    after = bench.fit(spec, recorder(), run="after")
    assert isinstance(before, Finished)
    assert isinstance(after, Finished)
    assert before.weights_sha256 == after.weights_sha256
