"""Training on a GPU."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec, TypeAlias

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from backends.contracts import ModelConfig
from backends.loading import load_model, model_family
from backends.models import transformer
from backends.registry import MODEL_FAMILIES
from trainer_app.core import adamw, compilation, device, gelu, graphs, loss, optim, residual
from trainer_app.core.compilation import Execution
from trainer_app.core.device import (
    out_of_memory_named,
    recommended_batch_size,
    recommended_batch_size_for,
    resolve_device,
    resolve_precision,
)
from trainer_app.core.evaluate import evaluate
from trainer_app.core.loss import LanguageModelLoss, fused_loss
from trainer_app.core.run_files import Finished, Stopped
from trainer_app.core.spec import OPTIMIZERS, OptimizerName, RequestedPrecision
from trainer_app.core.step import StepResult, TrainingStep
from trainer_app.core.stopping import never
from trainer_app.core.streams import TokenStream
from trainer_app.errors import FieldError, OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.training_bench import Bench, Recorder
    from trainer_app.core.spec import TrainSpec

MakeRecorder: TypeAlias = "type[Recorder]"
P = ParamSpec("P")
PRECISIONS: tuple[RequestedPrecision, ...] = ("fp32", "bf16", "fp16", "auto")
WITH_FP8: tuple[RequestedPrecision, ...] = (*PRECISIONS[:3], "fp8")


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


def finished(bench: Bench, spec: TrainSpec, observer: Recorder, run: str) -> Finished:
    outcome = bench.fit(spec, observer, run=run)
    assert isinstance(outcome, Finished)
    return outcome


@pytest.mark.parametrize("precision", WITH_FP8)
@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_steps_recorded_as_one_graph_have_the_bytes_of_steps_taken_kernel_by_kernel(
    bench: Bench,
    recorder: MakeRecorder,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    precision: RequestedPrecision,
) -> None:
    spec = replace(
        bench.spec,
        model_family=family,
        precision=precision,
        deterministic=True,
        max_steps=200,
        gradient_accumulation_steps=2,
    )
    recorded = finished(bench, spec, recorder(), "recorded")
    assert replace(recorded.execution, why_not_compiled=None) == Execution(cuda_graph=True)
    monkeypatch.setattr(graphs, "WARM_UP_STEPS", 1 << 30)
    plain = finished(bench, spec, recorder(), "plain")
    assert replace(plain.execution, why_not_compiled=None) == Execution()
    assert recorded.loss_chain == plain.loss_chain
    assert recorded.weights_sha256 == plain.weights_sha256


def test_a_busy_gpu_draws_no_other_random_numbers_at_the_first_recorded_step(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(bench.spec, model_family="char_lstm", deterministic=True, max_steps=20)
    usual = finished(bench, spec, recorder(), "usual")
    matrix, product = (torch.ones(8192, 8192, device="cuda") for _ in range(2))

    def busily(begin: Callable[P, None]) -> Callable[P, None]:
        def begin_late(*args: P.args, **kwargs: P.kwargs) -> None:
            for _ in range(10):  # before what torch does aside as a recording begins
                torch.mm(matrix, matrix, out=product)
            begin(*args, **kwargs)

        return begin_late

    late = busily(torch.cuda.CUDAGraph.capture_begin)
    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", late)
    busy = finished(bench, spec, recorder(), "busy")
    assert busy.loss_chain == usual.loss_chain


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_kernel_of_gelu_gives_the_loss_curve_without_it(
    bench: Bench,
    recorder: MakeRecorder,
    monkeypatch: pytest.MonkeyPatch,
    precision: RequestedPrecision,
) -> None:
    spec = replace(bench.spec, precision=precision, max_steps=200, learning_rate=3e-4)
    without, uncompiled, compiled = recorder(), recorder(), recorder()
    finished(bench, spec, without, "without")
    monkeypatch.setattr(gelu, "FEWEST", 1)
    finished(bench, spec, uncompiled, "uncompiled")
    finished(bench, replace(spec, torch_compile="on"), compiled, "compiled")
    expected = [step.train_loss for step in without.steps]
    for other in (uncompiled, compiled):
        assert [step.train_loss for step in other.steps] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("precision", WITH_FP8[1:])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen"])
def test_the_kernel_of_the_stream_gives_the_loss_curve_without_it(
    bench: Bench,
    recorder: MakeRecorder,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    precision: RequestedPrecision,
) -> None:
    spec = replace(
        bench.spec, model_family=family, precision=precision, max_steps=200, learning_rate=3e-4
    )
    without, uncompiled, compiled = recorder(), recorder(), recorder()
    monkeypatch.setattr(residual, "FEWEST", 1 << 40)
    finished(bench, replace(spec, torch_compile="off"), without, "without")
    monkeypatch.setattr(residual, "FEWEST", 1)
    finished(bench, replace(spec, torch_compile="off"), uncompiled, "uncompiled")
    finished(bench, replace(spec, torch_compile="on"), compiled, "compiled")
    expected = [step.train_loss for step in without.steps]
    for other in (uncompiled, compiled):
        assert not [message for message in other.messages if "kernel of its own" in message]
        assert [step.train_loss for step in other.steps] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("precision", WITH_FP8)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "char_lstm"])
def test_a_deterministic_run_that_is_interrupted_ends_in_the_same_bytes(
    bench: Bench,
    recorder: MakeRecorder,
    family: str,
    optimizer: OptimizerName,
    precision: RequestedPrecision,
) -> None:
    spec = replace(
        bench.spec,
        model_family=family,
        optimizer=optimizer,
        precision=precision,
        deterministic=True,
    )
    whole = finished(bench, spec, recorder(), "whole")
    stopped = bench.fit(spec, recorder(stop_after=31), run="stopped")
    assert isinstance(stopped, Stopped)
    assert 0 < stopped.step < 60
    resumed = bench.fit(spec, recorder(), run="stopped", attempt=2)
    assert isinstance(resumed, Finished)
    assert resumed.execution.cuda_graph
    assert resumed.loss_chain == whole.loss_chain
    assert resumed.weights_sha256 == whole.weights_sha256


@pytest.mark.parametrize("precision", PRECISIONS[:3])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen"])
def test_every_fast_path_gives_the_loss_curve_of_the_plain_one(
    bench: Bench,
    recorder: MakeRecorder,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    precision: RequestedPrecision,
) -> None:
    # a rate at which rounding is not amplified from step to step
    spec = replace(
        bench.spec, model_family=family, precision=precision, max_steps=200, learning_rate=3e-4
    )
    compiled, recorded, plain = recorder(), recorder(), recorder()
    outcome = finished(bench, replace(spec, torch_compile="on"), compiled, "compiled")
    assert outcome.execution == Execution(cuda_graph=True, compiled=True)
    assert any(text.startswith("compiled the model in") for text in compiled.messages)
    finished(bench, spec, recorded, "recorded")
    monkeypatch.setattr(graphs, "WARM_UP_STEPS", 1 << 30)
    monkeypatch.setattr(loss, "why_unfused", lambda _: "another path is wanted")
    monkeypatch.setattr(optim, "why_not", lambda: "another path is wanted")
    finished(bench, replace(spec, torch_compile="off"), plain, "plain")
    close = 1e-3 if precision == "fp32" else 1e-2
    for fast in (compiled, recorded):
        for ours, theirs in zip(fast.steps, plain.steps, strict=True):
            assert ours.train_loss == pytest.approx(theirs.train_loss, rel=close)


@pytest.mark.parametrize("family", ["gpt2", "char_lstm"])
def test_a_step_that_is_recorded_anew_where_memory_was_short_gives_the_same_bytes(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    spec = replace(bench.spec, model_family=family, deterministic=True)
    undisturbed = finished(bench, spec, recorder(), "undisturbed")
    take = TrainingStep.__call__

    def make_room_and_take(step: TrainingStep, number: int) -> StepResult | None:
        if number in {1, 20, 21, 40}:
            step.make_room()
        return take(step, number)

    monkeypatch.setattr(TrainingStep, "__call__", make_room_and_take)
    disturbed = finished(bench, spec, recorder(), "disturbed")
    assert replace(disturbed.execution, why_not_compiled=None) == Execution(cuda_graph=True)
    assert disturbed.loss_chain == undisturbed.loss_chain
    assert disturbed.weights_sha256 == undisturbed.weights_sha256


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_an_embedding_that_is_frozen_stays_as_it_was(
    bench: Bench, recorder: MakeRecorder, family: str, optimizer: OptimizerName
) -> None:
    spec = replace(
        bench.spec, model_family=family, optimizer=optimizer, freeze_embed=True, eval_steps=None
    )
    embeddings = []
    for steps in (1, 40):
        observer = recorder()
        outcome = finished(bench, replace(spec, max_steps=steps), observer, f"steps {steps}")
        model = load_model(outcome.directory)
        embeddings.append(
            next(p for name, p in model.named_parameters() if "wte" in name or "emb" in name)
        )
        assert all(math.isfinite(report.train_loss) for report in observer.steps)
    assert torch.equal(*embeddings)


def test_a_step_that_cannot_be_recorded_runs_kernel_by_kernel_and_says_why(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = transformer._attend

    def looked_at(*tensors: torch.Tensor) -> torch.Tensor:
        assert math.isfinite(tensors[0].sum().item())
        return attend(*tensors)

    monkeypatch.setattr(transformer, "_attend", looked_at)
    observer = recorder()
    outcome = finished(
        bench, replace(bench.spec, gradient_accumulation_steps=3), observer, "looked at"
    )
    assert not outcome.execution.cuda_graph
    assert outcome.execution.why_no_graph is not None
    assert any("kernel by kernel, not as one CUDA graph" in text for text in observer.messages)
    monkeypatch.undo()
    finished(bench, bench.spec, recorder(), "the next")


def test_a_step_that_cannot_be_recorded_anew_is_told_as_one_without_a_graph(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = transformer._attend
    take = TrainingStep.__call__
    looking: list[int] = []

    def looked_at(*tensors: torch.Tensor) -> torch.Tensor:
        if looking:
            assert math.isfinite(tensors[0].sum().item())
        return attend(*tensors)

    def make_room_and_take(step: TrainingStep, number: int) -> StepResult | None:
        if number == 20:
            looking.append(number)
            step.make_room()
        return take(step, number)

    monkeypatch.setattr(transformer, "_attend", looked_at)
    monkeypatch.setattr(TrainingStep, "__call__", make_room_and_take)
    observer = recorder()
    outcome = finished(bench, replace(bench.spec, torch_compile="off"), observer, "looked at")
    assert not outcome.execution.cuda_graph
    assert outcome.execution.why_no_graph is not None
    assert all(math.isfinite(report.train_loss) for report in observer.steps)
    assert torch.rand(8, device="cuda").isfinite().all()  # as dropout needs it


def test_where_the_compiled_form_cannot_be_recorded_the_model_as_it_is_is(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looking(
        hidden: Callable[[torch.Tensor], torch.Tensor], **_: object
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        def looked_at(ids_BT: torch.Tensor) -> torch.Tensor:
            x_BTD = hidden(ids_BT)
            assert math.isfinite(x_BTD.sum().item())
            return x_BTD

        return looked_at

    monkeypatch.setattr(torch, "compile", looking)
    spec = replace(bench.spec, precision="fp32", learning_rate=3e-4)
    observer = recorder()
    outcome = finished(bench, replace(spec, torch_compile="on"), observer, "looked at")
    assert outcome.execution.cuda_graph
    assert outcome.execution.why_no_graph is None
    assert not outcome.execution.compiled
    said = "goes uncompiled: it cannot be recorded as a CUDA graph: "
    assert any(text.startswith(said) for text in observer.messages)
    plain = recorder()
    finished(bench, replace(spec, torch_compile="off"), plain, "plain")
    for ours, theirs in zip(observer.steps, plain.steps, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)


def test_a_machine_without_a_c_compiler_trains_all_the_same(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    for kernel in ("cross_entropy_", "clipped_adamw_"):
        monkeypatch.setattr(f"trainer_app.core.kernels.{kernel}", no_compiler)
    observer = recorder()
    loss.why_unfused.cache_clear()
    adamw.why_not.cache_clear()
    try:
        outcome = finished(bench, replace(bench.spec, torch_compile="off"), observer, "run")
    finally:
        loss.why_unfused.cache_clear()
        adamw.why_not.cache_clear()
    assert outcome.execution.cuda_graph
    assert {
        "the loss has no kernel of its own: Failed to find C compiler",
        "the optimizer has no kernels of its own: Failed to find C compiler",
    } <= set(observer.messages)


def test_a_compiler_that_fails_ends_no_run(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    observer = recorder()
    outcome = finished(bench, replace(bench.spec, torch_compile="on"), observer, "run")
    assert outcome.execution == Execution(cuda_graph=True, why_not_compiled="no compiler here")
    assert "goes uncompiled: no compiler here" in observer.messages


def test_a_long_run_compiles_by_itself_and_a_short_one_never_waits(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = recorder()
    short = finished(bench, bench.spec, observer, "short")
    assert not short.execution.compiled
    assert f"goes uncompiled: {short.execution.why_not_compiled}" in observer.messages
    assert "recorded a step as one CUDA graph, to be replayed" in observer.messages
    monkeypatch.setattr(compilation, "COLD_SECONDS", 1e-9)
    long = finished(bench, replace(bench.spec, max_steps=2_000), recorder(), "long")
    assert long.execution == Execution(cuda_graph=True, compiled=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [100, 256, 8_192, 50_257])
def test_the_fused_loss_and_its_gradients_are_those_of_the_plain_one(
    vocab: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    hidden_ND = torch.randn(300, 64, device="cuda")
    weight_VD = torch.randn(vocab, 64, device="cuda") / 8
    targets_N = torch.randint(0, vocab, (300,), device="cuda")
    found = []
    for compute in (fused_loss, plain_loss):
        h, w = hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            value = compute(h, w, targets_N)
        found.append([value.detach(), *torch.autograd.grad(1_000 * value, [h, w])])
        with torch.no_grad(), torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            assert compute(h, w, targets_N).item() == pytest.approx(value.item(), rel=1e-5)
    for ours, expected in zip(*found, strict=True):
        error = (ours - expected).norm() / expected.norm()
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def plain_loss(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor
) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden_ND, weight_VD).float(), targets_N)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient_from_the_fused_loss(frozen: str) -> None:
    hidden_ND = torch.randn(8, 16, device="cuda", requires_grad=frozen != "hidden")
    weight_VD = torch.randn(30, 16, device="cuda", requires_grad=frozen != "weight")
    torch.autograd.backward(fused_loss(hidden_ND, weight_VD, torch.arange(8, device="cuda")))
    assert (hidden_ND.grad is None) == (frozen == "hidden")
    assert (weight_VD.grad is None) == (frozen == "weight")


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_in_fp8_a_run_learns_as_in_bf16(bench: Bench, recorder: MakeRecorder, family: str) -> None:
    spec = replace(
        bench.spec,
        model_family=family,
        max_steps=1_000,
        learning_rate=5e-4,
        early_stopping_patience=0,
    )
    curves = []
    precisions: tuple[RequestedPrecision, ...] = ("bf16", "fp8")
    for precision in precisions:
        observer = recorder()
        outcome = finished(bench, replace(spec, precision=precision), observer, precision)
        assert outcome.precision == precision
        losses = torch.tensor([report.train_loss for report in observer.steps])
        curves.append(losses.reshape(20, 50).mean(1))
    torch.testing.assert_close(curves[1], curves[0], rtol=0.01, atol=0.0)


@pytest.mark.parametrize("family", ["gpt2", "char_lstm"])
def test_fp8_without_the_compiler_never_calls_it(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    def called(*_: object, **__: object) -> None:
        raise AssertionError("torch.compile was called")

    monkeypatch.setattr(torch, "compile", called)
    spec = replace(bench.spec, model_family=family, precision="fp8", torch_compile="off")
    observer = recorder()
    outcome = finished(bench, spec, observer, "run")
    assert outcome.execution.cuda_graph
    assert not outcome.execution.compiled
    assert observer.steps[-1].train_loss < observer.steps[0].train_loss - 0.5


def test_what_the_compiler_keeps_of_fp8_is_no_pickled_graph(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    spec = replace(bench.spec, precision="fp8", max_steps=10, eval_steps=None)
    assert finished(bench, spec, recorder(), "run").execution.compiled
    kept = {path.name for path in (tmp_path / "inductor").iterdir()}
    assert kept
    assert not kept & {"fxgraph", "aotautograd"}


def test_a_gpu_without_fp8_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "FP8_CAPABILITY", (99, 0))
    with pytest.raises(FieldError, match="'fp8' needs an H100 or later, and this is"):
        resolve_precision("fp8", "cuda")


def test_an_evaluation_waits_for_the_gpu_once_however_many_batches_it_has() -> None:
    config = ModelConfig(family="gpt2", size="tiny", vocab_size=300, max_seq_len=64)
    model = LanguageModelLoss(model_family("gpt2").build(config)).cuda()

    def waits(batches: int) -> int:
        ids = (np.arange(8 * 64 * batches + 1) % 300).astype(np.uint16)
        stream = TokenStream(ids=ids, bytes=len(ids))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                evaluate(model, stream, seq_len=64, batch_size=8, device="cuda", should_stop=never)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in seen)

    waits(1)  # kernels are loaded, and the loss's is compiled
    assert 1 <= waits(1) == waits(20) <= 2


def test_a_run_tells_its_speed_its_memory_and_how_much_of_the_gpu_it_used(
    bench: Bench, recorder: MakeRecorder
) -> None:
    observer = recorder()
    outcome = finished(bench, replace(bench.spec, max_steps=2_000), observer, "run")
    performance = outcome.performance
    assert performance is not None
    assert performance.tokens_per_sec == pytest.approx(8 * 64 * 1_000 / performance.step_ms)
    assert performance.peak_memory_bytes > 1 << 20
    assert performance.mfu is not None
    assert 0.0 < performance.mfu < 1.0
    assert observer.steps[-1].mfu is not None


def test_a_small_batch_is_trained_as_asked_for_and_a_larger_one_recommended(
    bench: Bench, recorder: MakeRecorder
) -> None:
    observer = recorder()
    outcome = bench.fit(replace(bench.spec, batch_size=4, max_steps=2), observer)
    assert isinstance(outcome, Finished)
    said = "batch_size 4 leaves most of a GPU idle: 32 is recommended for gpt2"
    assert any(message.startswith(said) for message in observer.messages)
