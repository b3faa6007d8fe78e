"""Losses on held-out text."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from backends.contracts import ModelConfig
from backends.loading import load_tokenizer, model_family
from backends.registry import MODEL_FAMILIES
from trainer_app.core.evaluate import Evaluation, bits_per_byte, evaluate
from trainer_app.core.evaluate_run import evaluate_run, evaluate_text
from trainer_app.core.loss import LanguageModelLoss
from trainer_app.core.observer import StopReason
from trainer_app.core.perplexity import perplexity
from trainer_app.core.spec import TrainSpec
from trainer_app.core.splits import Split
from trainer_app.core.stopping import StopRequested, never
from trainer_app.core.streams import TokenStream
from trainer_app.errors import CorpusTooShort, LossNotFinite

if TYPE_CHECKING:
    from tests.training_bench import Bench


def stream(tokens: int) -> TokenStream:
    ids = np.random.default_rng(0).integers(0, 50, tokens).astype(np.uint16)
    return TokenStream(ids=ids, bytes=3 * tokens)


def model(family: str) -> LanguageModelLoss:
    torch.manual_seed(0)
    config = ModelConfig(family=family, size="tiny", vocab_size=50, max_seq_len=8)
    return LanguageModelLoss(model_family(family).build(config))


@pytest.mark.parametrize("family", MODEL_FAMILIES)
@pytest.mark.parametrize("tokens", [2, 8, 9, 17, 60])
def test_the_loss_is_a_mean_over_tokens_whatever_the_batches(family: str, tokens: int) -> None:
    made, text = model(family), stream(tokens)
    results = [
        evaluate(made, text, seq_len=8, batch_size=size, device="cpu", should_stop=never)
        for size in (1, 3, 64)
    ]
    made.eval()
    losses: list[float] = []
    with torch.inference_mode():
        for start in range(0, tokens - 1, 8):
            window = torch.tensor(text.ids[start : start + 9].astype(np.int64))[None]
            logits = made.model(window[:, :-1])
            chances = logits.log_softmax(-1).gather(-1, window[:, 1:, None])
            losses.extend((-chances.flatten()).tolist())
    assert len(losses) == tokens - 1
    expected = sum(losses) / len(losses)
    for result in results:
        assert result.tokens == tokens - 1
        assert result.loss == pytest.approx(expected, rel=1e-5)
        assert result.perplexity == pytest.approx(math.exp(expected), rel=1e-4)
        assert result.bits_per_byte == pytest.approx(
            expected * (tokens - 1) / math.log(2) / (3 * tokens), rel=1e-5
        )


def test_the_sum_over_batches_has_the_bytes_of_one_in_python() -> None:
    made, text = model("gpt2"), stream(100)
    found = evaluate(made, text, seq_len=8, batch_size=3, device="cpu", should_stop=never)
    made.eval()
    total = 0.0
    with torch.inference_mode():
        for first, rows, columns in [*((24 * n, 3, 8) for n in range(4)), (96, 1, 3)]:
            ids = torch.tensor(text.ids[first : first + rows * columns + 1].astype(np.int64))
            inputs, targets = ids[:-1].view(rows, columns), ids[1:].view(rows, columns)
            total += made(inputs, targets).item() * rows * columns
    assert found.loss == total / 99


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_it_draws_no_random_number_and_leaves_the_mode_as_it_was(family: str) -> None:
    made = model(family)
    before = torch.get_rng_state()
    for training in (True, False):
        made.train(training)
        evaluate(made, stream(20), seq_len=8, batch_size=2, device="cpu", should_stop=never)
        assert made.training is made.model.training is training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_a_model_that_is_in_use_stays_so(family: str) -> None:
    loaded = model(family).model.eval()
    with_loss = LanguageModelLoss(loaded)
    evaluate(with_loss, stream(20), seq_len=8, batch_size=2, device="cpu", should_stop=never)
    assert not any(module.training for module in loaded.modules())


def test_a_stop_ends_it_between_two_batches() -> None:
    questions = iter([None, StopReason.DRAIN])
    made = model("gpt2").train()
    with pytest.raises(StopRequested):
        evaluate(
            made,
            stream(60),
            seq_len=8,
            batch_size=2,
            device="cpu",
            should_stop=lambda: next(questions),
        )
    assert made.training


def test_weights_that_are_not_finite_are_told() -> None:
    made = model("gpt2")
    with torch.no_grad():
        next(made.parameters()).fill_(math.nan)
    with pytest.raises(LossNotFinite):
        evaluate(made, stream(20), seq_len=8, batch_size=2, device="cpu", should_stop=never)


def test_figures_stay_finite() -> None:
    assert perplexity(1e6) < math.inf
    assert perplexity(0.0) == 1.0
    assert bits_per_byte(math.log(2) * 80, 10) == pytest.approx(8.0)


def test_a_finished_run_is_evaluated_on_the_split_that_is_asked_for(bench: Bench) -> None:
    finished = bench.finish(bench.spec)

    def loss(split: Split, spec: TrainSpec = bench.spec) -> float:
        return evaluate_run(
            finished.directory,
            split,
            spec=spec,
            corpus=bench.corpus,
            tokens=bench.folder / "tokens",
            device="cpu",
            on_message=print,
            should_stop=never,
        ).loss

    assert loss(Split.VALIDATION) == pytest.approx(finished.best_val_loss, rel=1e-6)
    assert loss(Split.TEST) == pytest.approx(finished.test_loss, rel=1e-6)
    assert len({loss(split) for split in Split}) == 3
    with pytest.raises(CorpusTooShort, match="no test split"):
        loss(Split.TEST, replace(bench.spec, test_split_ratio=0.0))


def test_another_text_is_evaluated_as_a_whole(bench: Bench) -> None:
    finished = bench.finish(bench.spec)

    def losses(name: str, text: str) -> Evaluation:
        other = bench.with_corpus(name, text)
        return evaluate_text(
            finished.directory,
            other.corpus,
            sha256=other.spec.corpus_sha256,
            spec=bench.spec,
            tokens=bench.folder / "tokens",
            device="cpu",
            on_message=print,
            should_stop=never,
        )

    text = "The river runs past a mill.\n" * 3
    evaluation = losses("other.txt", text)
    ids = load_tokenizer(finished.directory).encode(text)
    assert evaluation.tokens == len(ids) - 1
    assert evaluation.bits_per_byte == pytest.approx(
        evaluation.loss * evaluation.tokens / math.log(2) / len(text)
    )
    assert losses("other.txt", text) == evaluation
    with pytest.raises(CorpusTooShort, match="1 tokens; a loss needs at least 2"):
        losses("short.txt", "x")


def test_a_text_whose_token_ids_were_zeroed_is_tokenized_anew(bench: Bench) -> None:
    finished = bench.finish(bench.spec)
    other = bench.with_corpus("other.txt", "The river runs past a mill.\n" * 3)
    tokens = bench.folder / "tokens"
    messages: list[str] = []

    def evaluated() -> Evaluation:
        return evaluate_text(
            finished.directory,
            other.corpus,
            sha256=other.spec.corpus_sha256,
            spec=bench.spec,
            tokens=tokens,
            device="cpu",
            on_message=messages.append,
            should_stop=never,
        )

    expected = evaluated()
    (entry,) = tokens.glob(f"{other.spec.corpus_sha256[:32]}-*")
    (entry / "ids.bin").write_bytes(bytes((entry / "ids.bin").stat().st_size))
    assert evaluated() == expected
    assert f"WARNING: damaged token ids are made anew: {entry.name}: " in "\n".join(messages)
