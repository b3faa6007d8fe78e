"""Scores: each token predicted once, in bounded memory, as a plain forward would."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from backends.contracts import ModelConfig
from backends.loading import model_family, tokenizer_kind
from backends.registry import MODEL_FAMILIES
from trainer_app.core import score as scores
from trainer_app.core.evaluate import evaluate
from trainer_app.core.loaded import LoadedModel
from trainer_app.core.loss import LanguageModelLoss
from trainer_app.core.observer import StopReason
from trainer_app.core.score import Score, score, windows
from trainer_app.core.score_spec import DetailLevel, ScoreSpec
from trainer_app.core.stopping import StopRequested, never
from trainer_app.core.streams import TokenStream
from trainer_app.errors import FieldError, LossNotFinite

FAMILIES = sorted(MODEL_FAMILIES)
CONTEXT = 16
CORPUS = "The quick brown fox jumps over the lazy dog, again and again.\n"


def build(family: str, *, kind: str = "char", context: int = CONTEXT) -> LoadedModel:
    vocab_size = 262 if kind == "bpe" else 100
    tokenizer = tokenizer_kind(kind).train([CORPUS], vocab_size=vocab_size, min_frequency=1)
    torch.manual_seed(0)
    config = ModelConfig(
        family=family, size="tiny", vocab_size=tokenizer.vocab_size, max_seq_len=context
    )
    model = model_family(family).build(config)
    model.train()  # scoring itself must see to it that nothing is dropped
    return LoadedModel(model=model, tokenizer=tokenizer, device="cpu")


def run(
    loaded: LoadedModel,
    text: str,
    *,
    detail_level: DetailLevel = "summary",
    top_k: int | None = None,
) -> Score:
    spec = ScoreSpec(text=text, detail_level=detail_level, top_k=top_k)
    return score(loaded, spec, should_stop=never)


def plain(loaded: LoadedModel, ids: list[int]) -> Tensor:
    """Nats of all tokens but the first, by one forward pass over them all."""
    with loaded.in_use():
        logits_TV = loaded.model(torch.tensor([ids[:-1]]))[0]
    return F.cross_entropy(logits_TV, torch.tensor(ids[1:]), reduction="none")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [2, 3, CONTEXT, CONTEXT + 1])
def test_the_loss_of_a_text_that_fits_is_that_of_one_plain_forward(
    family: str, length: int
) -> None:
    loaded = build(family)
    text = CORPUS[:length]
    expected = plain(loaded, loaded.tokenizer.encode(text))
    result = run(loaded, text)
    assert result.loss == pytest.approx(float(expected.mean()), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert (result.surprisal, result.topk, result.tokens) == (None, None, None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", [8, 9, CONTEXT])
def test_each_token_of_a_long_text_gets_what_its_own_window_gives(
    family: str, context: int
) -> None:
    loaded = build(family, context=context)
    text = CORPUS * 2
    ids = loaded.tokenizer.encode(text)
    surprisal = run(loaded, text, detail_level="per_char").surprisal
    assert surprisal is not None
    for start, first, last in windows(len(ids), context):
        expected = plain(loaded, ids[start : last + 1])[first - start - 1 :] / math.log(2)
        assert surprisal[first - 1 : last] == pytest.approx(expected.tolist(), abs=1e-4)


@given(tokens=st.integers(2, 5_000), size=st.integers(1, 3_000))
def test_batches_hold_all_windows_in_order_and_equal_in_length(tokens: int, size: int) -> None:
    batches = list(scores._batches(tokens, size))
    assert [window for batch in batches for window in batch] == list(windows(tokens, size))
    for batch in batches:
        assert len({last - start for start, _, last in batch}) == 1
        assert len(batch) == 1 or len(batch) * size <= scores.TOKENS_AT_ONCE
    assert len(batches) <= 2 + tokens // (size // 2 or 1) / max(scores.TOKENS_AT_ONCE // size, 1)


@given(tokens=st.integers(2, 400), size=st.integers(1, 70))
def test_windows_predict_each_token_once_with_half_a_window_before_it(
    tokens: int, size: int
) -> None:
    predicted: list[int] = []
    for start, first, last in windows(tokens, size):
        assert last - start <= size
        assert start == 0 or first - start >= size / 2
        predicted.extend(range(first, last + 1))
    assert predicted == list(range(1, tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_of_the_surprisal_is_the_loss_in_bits(family: str) -> None:
    loaded = build(family)
    result = run(loaded, CORPUS * 3, detail_level="per_char")
    assert result.surprisal is not None
    mean = math.fsum(result.surprisal) / len(result.surprisal)
    assert mean * math.log(2) == pytest.approx(result.loss, rel=1e-9)
    assert result.tokens == list(CORPUS * 3)
    assert len(result.surprisal) == len(result.tokens) - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_of_one_window_is_what_an_evaluation_gives(family: str) -> None:
    loaded = build(family, context=64)
    ids = loaded.tokenizer.encode(CORPUS)
    stream = TokenStream(ids=torch.tensor(ids).numpy().astype("uint16"), bytes=len(CORPUS))
    evaluation = evaluate(
        LanguageModelLoss(loaded.model),
        stream,
        seq_len=64,
        batch_size=1,
        device="cpu",
        should_stop=never,
    )
    assert run(loaded, CORPUS).loss == pytest.approx(evaluation.loss, rel=1e-5)


def test_the_likeliest_tokens_are_told_at_each_place() -> None:
    loaded = build("gpt2")
    ids = loaded.tokenizer.encode(CORPUS[:8])
    result = run(loaded, CORPUS[:8], top_k=3)
    with loaded.in_use():
        chances_TV = loaded.model(torch.tensor([ids[:-1]]))[0].softmax(-1)
    assert result.topk is not None
    assert len(result.topk) == 7
    for chances_V, candidates in zip(chances_TV, result.topk, strict=True):
        best = chances_V.topk(3)
        assert [one.token_id for one in candidates] == best.indices.tolist()
        assert [one.probability for one in candidates] == pytest.approx(best.values.tolist())
        for one in candidates:
            assert 2**-one.bits == pytest.approx(one.probability)
            assert one.token == loaded.tokenizer.token_text(one.token_id)
    assert result.surprisal is None


def test_more_candidates_than_tokens_are_all_tokens() -> None:
    loaded = build("gpt2")
    result = run(loaded, "The", top_k=100)
    assert result.topk is not None
    for candidates in result.topk:
        assert len(candidates) == loaded.tokenizer.vocab_size
        assert math.fsum(one.probability for one in candidates) == pytest.approx(1, rel=1e-5)


def test_a_score_is_json_with_each_field() -> None:
    result = run(build("gpt2"), "The", detail_level="per_char", top_k=1)
    told = json.loads(result.to_json())
    assert set(told) == {"loss", "perplexity", "surprisal", "topk", "tokens"}
    assert set(told["topk"][0][0]) == {"token", "token_id", "probability", "bits"}


def test_tokens_that_are_parts_of_characters_can_be_read() -> None:
    result = run(build("gpt2", kind="bpe"), "\N{EURO SIGN}", detail_level="per_char")
    assert result.tokens == ["\\xe2", "\\x82", "\\xac"]


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("T", 1)])
def test_a_text_of_fewer_than_two_tokens_has_no_score(text: str, tokens: int) -> None:
    reason = f"text: given, or read from path, has {tokens} tokens; a score needs at least 2"
    with pytest.raises(FieldError, match=reason):
        run(build("gpt2"), text)


def test_what_is_told_of_single_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = build("gpt2")
    monkeypatch.setattr(scores, "MAX_DETAILED_TOKENS", 10)
    monkeypatch.setattr(scores, "MAX_CANDIDATES", 20)
    with pytest.raises(FieldError, match=r"detail_level: .* at most 10 tokens, .* has 11"):
        run(loaded, CORPUS[:11], detail_level="per_char")
    with pytest.raises(FieldError, match=r"top_k: 3 for each of 7 tokens are 21 .* 20 is the most"):
        run(loaded, CORPUS[:8], top_k=3)
    run(loaded, CORPUS[:7], top_k=3, detail_level="per_char")
    run(loaded, CORPUS[:11])


def test_the_logits_of_a_window_are_never_all_held(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = build("gpt2")
    whole = run(loaded, CORPUS, detail_level="per_char", top_k=2)
    monkeypatch.setattr(scores, "LOGITS_AT_ONCE", 3 * loaded.tokenizer.vocab_size)
    ids = loaded.tokenizer.encode(CORPUS)
    with loaded.in_use():
        pieces = list(scores._predictions(loaded, ids, never))
    assert max(len(logits_RV) for logits_RV, _ in pieces) == 3
    assert torch.cat([targets_R for _, targets_R in pieces]).tolist() == ids[1:]
    chunked = run(loaded, CORPUS, detail_level="per_char", top_k=2)
    assert chunked.surprisal == pytest.approx(whole.surprisal, rel=1e-5)


def test_a_stop_ends_it_between_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "TOKENS_AT_ONCE", CONTEXT)
    questions = iter([None, StopReason.CANCEL])
    with pytest.raises(StopRequested):
        score(build("gpt2"), ScoreSpec(text=CORPUS), should_stop=lambda: next(questions))


def test_weights_that_are_not_finite_are_told() -> None:
    loaded = build("gpt2")
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(math.nan)
    with pytest.raises(LossNotFinite):
        run(loaded, CORPUS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_context_makes_a_difference(family: str) -> None:
    """Windows without an overlap would give the tokens after each border too little to go by."""
    loaded = build(family)
    assert run(loaded, CORPUS * 2).loss != pytest.approx(run(loaded, CORPUS).loss, rel=1e-9)
