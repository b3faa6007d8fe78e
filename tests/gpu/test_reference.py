"""Training on a GPU learns what a plain loop in float32 learns: no graph, no kernel of our own,
no stream in half precision, torch's own optimizers.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from backends.loading import tokenizer_kind
from backends.models import char_lstm
from tests.plain_training import plain_losses
from trainer_app.core.run_files import Finished

if TYPE_CHECKING:
    from pathlib import Path

    from tests.training_bench import Bench, Recorder
    from trainer_app.core.spec import CompileChoice, RequestedPrecision, TrainSpec

MANY = 8_400  # tokens: more than 8,192


@pytest.fixture
def spec(bench: Bench) -> TrainSpec:
    """200 steps, at a rate at which rounding is not amplified from step to step."""
    return replace(
        bench.spec,
        max_steps=200,
        eval_steps=100,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        torch_compile="off",
    )


def assert_learns_the_same(
    bench: Bench, spec: TrainSpec, observer: Recorder, *, rel: float, mean_of: int = 1
) -> None:
    """Compare the curves, each point the mean of so many steps."""
    outcome = bench.fit(spec, observer)
    assert isinstance(outcome, Finished)
    assert outcome.execution.cuda_graph
    assert outcome.execution.compiled == (spec.torch_compile == "on")
    expected = torch.tensor(plain_losses(bench, spec)).view(-1, mean_of).mean(1)
    found = torch.tensor([report.train_loss for report in observer.steps])
    assert expected[-1] < expected[0] - 0.3
    torch.testing.assert_close(found.view(-1, mean_of).mean(1), expected, rtol=rel, atol=0.0)


@pytest.mark.parametrize("choice", ["on", "off"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen"])
def test_in_float32_each_step_has_the_loss_of_the_plain_loop(
    bench: Bench, spec: TrainSpec, recorder: type[Recorder], family: str, choice: CompileChoice
) -> None:
    made = replace(spec, model_family=family, precision="fp32", torch_compile=choice)
    assert_learns_the_same(bench, made, recorder(), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen"])
def test_in_halves_the_curve_is_that_of_the_plain_loop_in_float32(
    bench: Bench,
    spec: TrainSpec,
    recorder: type[Recorder],
    family: str,
    precision: RequestedPrecision,
) -> None:
    # Means, and a curve that is less steep: the scaler of fp16 may skip some of the first steps,
    # which moves all that follow by as many.
    made = replace(spec, model_family=family, precision=precision, learning_rate=1e-4)
    rel = 0.02 if precision == "bf16" else 0.03
    assert_learns_the_same(bench, made, recorder(), rel=rel, mean_of=20)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_vocabulary_of_more_than_8192_tokens_learns_the_same(
    bench: Bench,
    spec: TrainSpec,
    recorder: type[Recorder],
    tmp_path: Path,
    precision: RequestedPrecision,
) -> None:
    large = with_many_tokens(bench, tmp_path / "many")
    made = replace(spec, precision=precision, corpus_sha256=large.spec.corpus_sha256)
    rel, mean_of = (1e-3, 1) if precision == "fp32" else (0.02, 20)
    assert_learns_the_same(large, made, recorder(), rel=rel, mean_of=mean_of)


def with_many_tokens(bench: Bench, tokenizer: Path) -> Bench:
    """A corpus of 3,000 words of seven letters, and a tokenizer that knows parts of them."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(3_000)]
    text = "\n".join(" ".join(generator.choices(words, k=12)) for _ in range(3_000))
    corpus = bench.folder / "many.txt"
    corpus.write_text(text)
    trained = tokenizer_kind("bpe").train([text], vocab_size=MANY, min_frequency=2)
    assert trained.vocab_size == MANY
    tokenizer.mkdir()
    trained.save(tokenizer)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return replace(
        bench,
        corpus=corpus,
        tokenizer=tokenizer,
        spec=replace(bench.spec, corpus_sha256=sha256),
    )


def test_char_lstm_without_dropout_learns_the_same(
    bench: Bench, spec: TrainSpec, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(char_lstm, "DROPOUT", 0.0)  # cuDNN's draws are its own
    made = replace(spec, model_family="char_lstm", precision="fp32")
    assert_learns_the_same(bench, made, recorder(), rel=5e-3)


@pytest.mark.parametrize("choice", ["on", "off"])
def test_steps_of_several_batches_learn_the_same(
    bench: Bench, spec: TrainSpec, recorder: type[Recorder], choice: CompileChoice
) -> None:
    made = replace(spec, precision="fp32", gradient_accumulation_steps=3, torch_compile=choice)
    assert_learns_the_same(bench, made, recorder(), rel=1e-3)


def test_muon_in_a_graph_learns_what_torch_s_own_does(
    bench: Bench, spec: TrainSpec, recorder: type[Recorder]
) -> None:
    # both orthogonalize in bf16, but in another order
    made = replace(spec, precision="fp32", optimizer="muon")
    assert_learns_the_same(bench, made, recorder(), rel=0.01)
