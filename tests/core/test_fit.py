"""Whole runs, small ones."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from backends.loading import load_model, load_tokenizer, tokenizer_kind
from backends.registry import MODEL_FAMILIES, TOKENIZER_KINDS
from tests.reports import START
from trainer_app.core import loop
from trainer_app.core.evaluate import Evaluation
from trainer_app.core.observer import StopReason
from trainer_app.core.run_files import Finished, Stopped
from trainer_app.core.spec import OPTIMIZERS, OptimizerName, TrainSpec
from trainer_app.core.streams import TokenStream
from trainer_app.errors import (
    CorpusChanged,
    CorpusTooShort,
    LossNotFinite,
    ModelIncompatible,
    OutOfMemory,
)

if TYPE_CHECKING:
    from tests.training_bench import Bench, Recorder

MakeRecorder: TypeAlias = "type[Recorder]"


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_a_run_ends_with_a_model_that_loads_and_figures_that_fit_it(
    bench: Bench, recorder: MakeRecorder, family: str
) -> None:
    observer = recorder()
    outcome = bench.fit(replace(bench.spec, model_family=family), observer)
    assert isinstance(outcome, Finished)
    model = load_model(outcome.directory)
    assert model.config.family == family
    assert load_tokenizer(outcome.directory).vocab_size == model.config.vocab_size
    assert (outcome.steps, outcome.device, outcome.precision) == (12, "cpu", "fp32")
    assert outcome.threads == 1
    assert outcome.spec.corpus_sha256 == bench.spec.corpus_sha256
    assert len(outcome.weights_sha256) == len(outcome.tokenizer_sha256) == 64
    assert outcome.final_perplexity == pytest.approx(math.exp(outcome.final_loss))
    assert outcome.bits_per_byte is not None
    (start,) = observer.starts
    assert start.spec == outcome.spec
    assert start.total_steps == 12
    assert start.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert min(start.train_tokens, start.validation_tokens, start.test_tokens) > 0
    assert [report.step for report in observer.steps] == list(range(1, 13))
    assert observer.steps[-1].train_loss == outcome.final_loss
    assert observer.steps[-1].train_loss < observer.steps[0].train_loss
    assert [report.step for report in observer.evaluations] == [4, 8, 12]
    assert outcome.best_val_loss == min(report.val_loss for report in observer.evaluations)
    assert json.dumps(observer.messages)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_a_run_takes_a_tokenizer_of_any_kind_and_publishes_its_files(
    bench: Bench, tmp_path: Path, kind: str
) -> None:
    trained = tokenizer_kind(kind).train(
        [bench.corpus.read_text()], vocab_size=320, min_frequency=2
    )
    directory = tmp_path / kind
    directory.mkdir()
    trained.save(directory)
    spec = replace(bench.spec, model_family="llama", max_steps=2)
    done = replace(bench, tokenizer=directory).finish(spec)
    for file in directory.iterdir():
        assert (done.directory / file.name).read_bytes() == file.read_bytes()
    assert load_model(done.directory).config.vocab_size == trained.vocab_size


def test_an_epoch_takes_every_window_and_is_evaluated_at_its_end(
    bench: Bench, recorder: MakeRecorder
) -> None:
    observer = recorder()
    spec = replace(bench.spec, max_steps=0, eval_steps=None, num_epochs=2, batch_size=16)
    outcome = bench.fit(spec, observer)
    assert isinstance(outcome, Finished)
    (start,) = observer.starts
    windows = (start.train_tokens - 1) // 16
    assert windows % 16  # the last step is filled up
    per_epoch = windows // 16 + 1
    assert start.total_steps == outcome.steps == 2 * per_epoch
    assert start.total_epochs == outcome.epochs == 2
    assert [report.step for report in observer.evaluations] == [per_epoch, 2 * per_epoch]
    assert [report.epoch for report in observer.evaluations] == [0, 1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(
    bench: Bench, recorder: MakeRecorder, optimizer: OptimizerName
) -> None:
    observer = recorder()
    rate = 0.1 if optimizer == "sgd" else 3e-3
    bench.fit(replace(bench.spec, optimizer=optimizer, learning_rate=rate), observer)
    assert observer.steps[-1].train_loss < observer.steps[0].train_loss - 0.3


def test_without_splits_the_last_weights_are_published(
    bench: Bench, recorder: MakeRecorder
) -> None:
    observer = recorder()
    spec = replace(bench.spec, holdout_fraction=0.0, test_split_ratio=0.0)
    outcome = bench.fit(spec, observer)
    assert isinstance(outcome, Finished)
    assert observer.evaluations == []
    assert (outcome.best_val_loss, outcome.test_loss, outcome.bits_per_byte) == (None, None, None)


def test_a_run_that_took_all_its_steps_was_not_stopped_early(bench: Bench) -> None:
    # nothing improves after the first evaluation, because nothing is learnt
    spec = replace(bench.spec, learning_rate=0.0, early_stopping_patience=2, eval_steps=2)
    for steps, early_stopped in ((6, False), (8, True)):
        outcome = bench.finish(replace(spec, max_steps=steps), run=f"of-{steps}")
        assert (outcome.steps, outcome.early_stopped) == (6, early_stopped)


def test_accumulated_batches_make_the_step_of_one_large_batch(bench: Bench) -> None:
    spec = replace(bench.spec, max_steps=3, batch_size=8)
    whole = bench.finish(spec, run="whole")
    parts = bench.finish(replace(spec, batch_size=2, gradient_accumulation_steps=4), run="parts")
    ours, theirs = (load_file(done.directory / "model.safetensors") for done in (whole, parts))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=2e-4)
    assert whole.final_loss == pytest.approx(parts.final_loss, rel=1e-4)
    assert (whole.batch_size, whole.accumulation) == (8, 1)
    assert (parts.batch_size, parts.accumulation) == (2, 4)


def test_batches_prepared_by_threads_train_the_same_bytes(bench: Bench) -> None:
    plain = bench.finish(bench.spec, run="plain")
    ahead = bench.finish(replace(bench.spec, data_num_workers=2), run="ahead")
    assert ahead.weights_sha256 == plain.weights_sha256


def test_samples_are_told_at_each_evaluation_and_change_nothing(
    bench: Bench, recorder: MakeRecorder
) -> None:
    plain = bench.finish(replace(bench.spec, model_family="char_lstm"), run="plain")
    observer = recorder()
    spec = replace(bench.spec, model_family="char_lstm", sample_prompts=("The river",))
    outcome = bench.fit(spec, observer, run="with")
    assert isinstance(outcome, Finished)
    samples = [text for text in observer.messages if text.startswith("sample: 'The river' -> ")]
    assert len(samples) == 3
    assert outcome.weights_sha256 == plain.weights_sha256


def test_a_frozen_embedding_stays_as_it_was(bench: Bench) -> None:
    spec = replace(bench.spec, model_family="char_lstm", freeze_embed=True)
    names = []
    for steps in (1, 6):
        done = bench.finish(replace(spec, max_steps=steps), run=f"run-{steps}")
        tensors = load_file(done.directory / "model.safetensors")
        names.append(tensors)
    same = {name for name, tensor in names[0].items() if torch.equal(tensor, names[1][name])}
    assert same == {"embedding.weight"}


def test_fine_tuning_goes_on_from_the_base_model_at_a_capped_rate(
    bench: Bench, recorder: MakeRecorder
) -> None:
    base = bench.finish(replace(bench.spec, max_steps=40), run="base")
    observer = recorder()
    spec = replace(bench.spec, pretrained_run_id="run-base", warmup_ratio=0.0)
    tuned = bench.fit(spec, observer, run="tuned", base_model=base.directory)
    assert isinstance(tuned, Finished)
    assert observer.starts[0].learning_rate == observer.steps[0].learning_rate == 5e-5
    assert observer.evaluations[0].val_loss == pytest.approx(base.best_val_loss, abs=0.1)


def test_a_base_model_that_does_not_match_is_refused(bench: Bench, recorder: MakeRecorder) -> None:
    base = bench.finish(replace(bench.spec, max_steps=1), run="base")

    spec = replace(bench.spec, pretrained_run_id="run-base")

    def tune(spec: TrainSpec) -> None:
        bench.fit(spec, recorder(), run="tuned", base_model=base.directory)

    with pytest.raises(ModelIncompatible, match="is gpt2 tiny, not char_lstm tiny"):
        tune(replace(spec, model_family="char_lstm"))
    with pytest.raises(ModelIncompatible, match="is gpt2 tiny, not gpt2 mini"):
        tune(replace(spec, model_size="mini"))
    with pytest.raises(ModelIncompatible, match="max_seq_len 32 is beyond the base model's 16"):
        tune(replace(spec, max_seq_len=32))


def test_a_base_model_of_another_tokenizer_is_refused(bench: Bench, recorder: MakeRecorder) -> None:
    base = bench.finish(replace(bench.spec, max_steps=1), run="base")
    tokenizer = base.directory / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["model"]["dropout"] = None
    tokenizer.write_text(json.dumps(content))  # the same tokens, but not the same file
    with pytest.raises(ModelIncompatible, match="another tokenizer"):
        bench.fit(
            replace(bench.spec, pretrained_run_id="run-base"),
            recorder(),
            run="tuned",
            base_model=base.directory,
            own_tokenizer=True,
        )


def test_a_corpus_shorter_than_a_sequence_is_refused(bench: Bench, recorder: MakeRecorder) -> None:
    with pytest.raises(CorpusTooShort, match="max_seq_len 100000 needs at least 100001"):
        bench.fit(replace(bench.spec, max_seq_len=100_000), recorder())


def test_a_corpus_edited_after_the_post_is_refused(bench: Bench, recorder: MakeRecorder) -> None:
    bench.corpus.write_text("something else\n" * 100)
    with pytest.raises(CorpusChanged):
        bench.fit(bench.spec, recorder())


def test_a_loss_that_explodes_names_the_step(bench: Bench, recorder: MakeRecorder) -> None:
    observer = recorder()
    spec = replace(bench.spec, learning_rate=1e30, gradient_clipping=0.0, optimizer="sgd")
    with pytest.raises(LossNotFinite, match=r"at step [1-9]"):
        bench.fit(spec, observer)
    assert observer.checkpoints == []


@pytest.mark.parametrize("held_out", [0.0, 0.1])
@pytest.mark.parametrize(("rate", "decay"), [(1e38, 1e3), (1e18, 1e3)])
def test_weights_that_the_last_step_leaves_without_a_finite_loss_are_not_published(
    bench: Bench, recorder: MakeRecorder, held_out: float, rate: float, decay: float
) -> None:
    spec = replace(
        bench.spec,
        max_steps=1,
        learning_rate=rate,  # times the decay: beyond float32, or so large that products are
        weight_decay=decay,
        warmup_ratio=0.0,
        holdout_fraction=0.0,
        test_split_ratio=held_out,
    )
    observer = recorder()
    with pytest.raises(LossNotFinite, match=r"is not finite after step 1: set a learning_rate"):
        bench.fit(spec, observer)
    assert math.isfinite(observer.steps[-1].train_loss)


def test_a_batch_larger_than_the_corpus_is_cut_to_it(bench: Bench, recorder: MakeRecorder) -> None:
    other = bench.with_corpus("short.txt", "one two three\n" * 8)
    spec = replace(
        other.spec, batch_size=1 << 40, max_seq_len=8, holdout_fraction=0.0, test_split_ratio=0.0
    )
    observer = recorder()
    finished = other.fit(spec, observer)
    assert isinstance(finished, Finished)
    assert observer.starts[0].batch_size == (observer.starts[0].train_tokens - 1) // 8
    assert finished.batch_size == observer.starts[0].batch_size


def test_evaluations_take_no_larger_batches_than_the_steps(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def noted(model: nn.Module, stream: TokenStream, **how: object) -> Evaluation:
        sizes.append(how["batch_size"])
        return Evaluation(loss=1.0, perplexity=math.e, bits_per_byte=1.0, tokens=len(stream) - 1)

    monkeypatch.setattr(loop, "evaluate", noted)
    observer = recorder()
    spec = replace(bench.spec, batch_size=1 << 16, max_steps=1, holdout_fraction=0.5)
    bench.fit(spec, observer)
    assert sizes == [observer.starts[0].batch_size] * 2
    assert observer.starts[0].batch_size < 1 << 16


def test_an_allocation_that_fails_anywhere_is_out_of_memory(
    bench: Bench, recorder: MakeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(_: Recorder, __: object) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(recorder, "on_start", allocate)
    with pytest.raises(OutOfMemory, match="gpt2 tiny with batch_size 2 and max_seq_len 16"):
        bench.fit(bench.spec, recorder())


@pytest.mark.parametrize("reason", [StopReason.CANCEL, StopReason.DRAIN, StopReason.TIMEOUT])
def test_a_stop_leaves_a_checkpoint_within_a_step(
    bench: Bench, recorder: MakeRecorder, reason: StopReason
) -> None:
    observer = recorder(stop_after=3, reason=reason)
    outcome = bench.fit(bench.spec, observer)
    assert isinstance(outcome, Stopped)
    assert (outcome.reason, outcome.step) == (reason, 3)
    assert outcome.checkpoint is not None
    assert (outcome.checkpoint / "MANIFEST.json").exists()
    assert [report.step for report in observer.steps] == [1, 2, 3]
    assert [report.path for report in observer.checkpoints] == [outcome.checkpoint]


def test_a_lost_lease_writes_nothing_more(bench: Bench, recorder: MakeRecorder) -> None:
    outcome = bench.fit(bench.spec, recorder(stop_after=3, reason=StopReason.FENCED))
    assert outcome == Stopped(reason=StopReason.FENCED, step=3, checkpoint=None)
    assert not (bench.folder / "run").exists()


def test_a_stop_before_training_has_nothing_to_keep(bench: Bench, recorder: MakeRecorder) -> None:
    observer = recorder(stop_after=0)
    observer.starts.append(START)  # it asks to stop from the beginning
    outcome = bench.fit(bench.spec, observer)
    assert outcome == Stopped(reason=StopReason.DRAIN, step=0, checkpoint=None)


def test_a_stop_is_heeded_soon(bench: Bench, recorder: MakeRecorder) -> None:
    observer = recorder(stop_after=20)
    outcome = bench.fit(replace(bench.spec, max_steps=100_000, eval_steps=10_000), observer)
    assert isinstance(outcome, Stopped)
    began = time.monotonic()
    assert observer.should_stop() is StopReason.DRAIN
    outcome = bench.fit(replace(bench.spec, max_steps=100_000), observer, attempt=2)
    assert isinstance(outcome, Stopped)
    assert outcome.step == 20
    assert time.monotonic() - began < 5


def test_checkpoints_are_written_by_time(bench: Bench, recorder: MakeRecorder) -> None:
    observer = recorder()
    bench.fit(bench.spec, observer, checkpoint_seconds=0.0)
    assert [report.step for report in observer.checkpoints] == list(range(1, 12))
    assert all(report.seconds > 0 for report in observer.checkpoints)
