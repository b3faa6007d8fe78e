"""Generation: within the context like transformers, past it for ever."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from operator import methodcaller
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from backends.contracts import EOS_ID, SPECIAL_TOKENS, ModelConfig
from backends.loading import model_family, tokenizer_kind
from backends.registry import MODEL_FAMILIES
from trainer_app.core.generate import READ_AT_ONCE, Generation, generate
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.loaded import LoadedModel, load_model
from trainer_app.errors import LossNotFinite

FAMILIES = sorted(MODEL_FAMILIES)
CONTEXT = 16
CORPUS = "The quick brown fox jumps over the lazy dog, again and again.\n"


def build(family: str, *, kind: str = "char", context: int = CONTEXT, seed: int = 0) -> LoadedModel:
    vocab_size = 262 if kind == "bpe" else 100
    tokenizer = tokenizer_kind(kind).train([CORPUS], vocab_size=vocab_size, min_frequency=1)
    torch.manual_seed(seed)
    config = ModelConfig(
        family=family, size="tiny", vocab_size=tokenizer.vocab_size, max_seq_len=context
    )
    model = model_family(family).build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # surer of itself than a fresh model, hence far from ties
    return LoadedModel(model=model, tokenizer=tokenizer, device="cpu")


def run(loaded: LoadedModel, spec: GenerateSpec) -> Generation:
    return generate(loaded, spec, should_stop=lambda: False)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_text(family: str) -> None:
    loaded = build(family)
    spec = GenerateSpec(prompt_text="The", seed=1, num_return_sequences=3, max_new_tokens=40)
    first = run(loaded, spec)
    torch.rand(7)  # what happened before is of no effect
    assert run(loaded, spec) == first
    assert len(set(first.outputs)) == 3
    assert run(loaded, GenerateSpec(prompt_text="The", seed=2)).outputs[0] not in first.outputs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", ["", "T", "The quick brown ", CORPUS, "\u4e2d\u6587"])
def test_any_prompt_is_continued_past_the_context(family: str, prompt: str) -> None:
    spec = GenerateSpec(prompt_text=prompt, max_new_tokens=60, seed=1, stop_on_eos=False)
    result = run(build(family), spec)
    assert result.steps == 60
    assert len(result.outputs[0]) > 40
    assert not result.outputs[0].startswith(prompt or "\0")


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_sequences_are_all_alike(family: str) -> None:
    loaded = build(family)
    spec = GenerateSpec(prompt_text="fox", temperature=0, max_new_tokens=40, num_return_sequences=3)
    several = run(loaded, spec)
    one = run(loaded, GenerateSpec(prompt_text="fox", temperature=0, max_new_tokens=40))
    assert several.outputs == one.outputs * 3
    assert several.steps == 3 * one.steps


def test_within_the_context_it_is_what_transformers_generates(tmp_path: Path) -> None:
    ours = build("gpt2", context=64)
    model_family("gpt2").save(ours.model, tmp_path)
    prompt_1T = torch.tensor([ours.tokenizer.encode("The quick")])
    generated = methodcaller(
        "generate",
        prompt_1T,
        attention_mask=torch.ones_like(prompt_1T),
        do_sample=False,
        max_new_tokens=50,
        suppress_tokens=[0, 1, 2],
    )
    expected_1T: Tensor = generated(GPT2LMHeadModel.from_pretrained(tmp_path))
    result = run(ours, GenerateSpec(prompt_text="The quick", temperature=0, max_new_tokens=50))
    assert result.outputs == [ours.tokenizer.decode(expected_1T[0, prompt_1T.shape[1] :].tolist())]


@pytest.mark.parametrize("context", [8, 9])
def test_past_the_context_the_latest_half_of_the_window_is_read_again(context: int) -> None:
    loaded = build("gpt2", context=context)
    ids = loaded.tokenizer.encode("dog")
    window = list(ids)
    with torch.inference_mode():
        for _ in range(30):
            if len(window) > context:
                window = window[-(context // 2) :]
            logits_V = loaded.model(torch.tensor([window]))[0, -1]
            logits_V[:EOS_ID] = -torch.inf
            ids.append(int(logits_V.argmax()))
            window.append(ids[-1])
    result = run(loaded, GenerateSpec(prompt_text="dog", temperature=0, max_new_tokens=30))
    assert "dog" + result.outputs[0] == loaded.tokenizer.decode(ids)


def test_of_a_long_prompt_the_last_tokens_count() -> None:
    loaded = build("gpt2")
    spec = GenerateSpec(prompt_text=CORPUS[-CONTEXT:], temperature=0)
    assert run(loaded, spec) == run(loaded, GenerateSpec(prompt_text=CORPUS * 9, temperature=0))


def test_a_recurrent_model_reads_the_whole_of_a_long_prompt() -> None:
    loaded = build("char_lstm")
    long = "a" * (2 * READ_AT_ONCE + 7)
    cache = loaded.model.new_cache(1, 1)
    with torch.inference_mode():
        loaded.model.eval()
        logits_1V = loaded.model.decode(torch.tensor([loaded.tokenizer.encode(long)]), cache)
    first = run(loaded, GenerateSpec(prompt_text=long, temperature=0, max_new_tokens=1)).outputs
    assert first == [loaded.tokenizer.decode([int(logits_1V[0, EOS_ID:].argmax()) + EOS_ID])]


def test_a_long_prompt_is_left_when_it_is_to_stop() -> None:
    loaded = build("char_lstm")
    asked = iter([False, True])  # a third question would raise
    spec = GenerateSpec(prompt_text="a" * (5 * READ_AT_ONCE), num_return_sequences=2)

    result = generate(loaded, spec, should_stop=lambda: next(asked))

    assert result == Generation(outputs=["", ""], steps=0, eos_terminated=[False, False])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_prompt_starts_like_a_text_after_another(family: str) -> None:
    loaded = build(family)
    with torch.inference_mode():
        loaded.model.eval()
        logits_V = loaded.model(torch.tensor([[EOS_ID]]))[0, -1]
    expected = int(logits_V[EOS_ID + 1 :].argmax()) + EOS_ID + 1
    spec = GenerateSpec(prompt_text="", temperature=0, max_new_tokens=1)
    assert run(loaded, spec).outputs == [loaded.tokenizer.decode([expected])]


def ends_soon(family: str) -> LoadedModel:
    """A model that ends its text after some tokens."""
    loaded = build(family)
    with torch.no_grad():
        loaded.model.head_weight()[EOS_ID] = loaded.model.head_weight()[4:].mean(0) * 2
    return loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_each_sequence_ends_by_itself(family: str) -> None:
    spec = GenerateSpec(
        prompt_text="fox", seed=4, num_return_sequences=8, max_new_tokens=40, top_k=0
    )
    result = run(ends_soon(family), spec)
    lengths = [len(text) for text in result.outputs]
    assert set(result.eos_terminated) == {True, False}
    assert result.steps == sum(lengths) + sum(result.eos_terminated)
    for length, ended in zip(lengths, result.eos_terminated, strict=True):
        assert (length < 40) == ended


@pytest.mark.parametrize("family", FAMILIES)
def test_it_goes_on_past_the_end_of_text_when_asked(family: str) -> None:
    spec = GenerateSpec(
        prompt_text="fox", seed=4, num_return_sequences=8, max_new_tokens=40, stop_on_eos=False
    )
    result = run(ends_soon(family), spec)
    assert result.steps == 320
    assert result.eos_terminated == [False] * 8
    assert not any(name in "".join(result.outputs) for name in SPECIAL_TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_ends_before_the_first_stop_string(family: str) -> None:
    loaded = build(family)
    spec = GenerateSpec(prompt_text="fox", seed=3, max_new_tokens=60, stop_on_eos=False)
    whole = run(loaded, spec).outputs[0]
    late, early = whole[40:44], whole[25:28]
    result = run(loaded, replace(spec, stop_sequences=("not in there", late, early)))
    assert result.outputs == [whole[: min(whole.find(early), whole.find(late))]]
    assert result.steps < 60
    assert result.eos_terminated == [False]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stop", ["a", "j", "q", "T"])
@pytest.mark.parametrize(("top_k", "top_p"), [(50, 1.0), (0, 1.0), (8, 0.9)])
def test_with_a_seed_a_stop_string_cuts_each_text_off_and_changes_none(
    family: str, stop: str, top_k: int, top_p: float
) -> None:
    loaded = build(family)
    spec = GenerateSpec(
        prompt_text="The",
        seed=1,
        num_return_sequences=3,
        max_new_tokens=40,
        stop_on_eos=False,
        top_k=top_k,
        top_p=top_p,
    )
    whole = run(loaded, spec).outputs
    result = run(loaded, replace(spec, stop_sequences=(stop,)))
    assert result.outputs == [text.partition(stop)[0] for text in whole]


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_seed_the_end_of_a_text_changes_no_other(family: str) -> None:
    loaded = ends_soon(family)
    spec = GenerateSpec(
        prompt_text="fox", seed=4, num_return_sequences=8, max_new_tokens=40, top_k=0
    )
    result = run(loaded, spec)
    assert 0 < sum(result.eos_terminated) < 8
    whole = run(loaded, replace(spec, stop_on_eos=False)).outputs
    for text, ended, longer in zip(result.outputs, result.eos_terminated, whole, strict=True):
        assert longer.startswith(text) if ended else longer == text


def test_a_stop_string_is_found_among_broken_characters() -> None:
    loaded = build("gpt2", kind="bpe")
    spec = GenerateSpec(prompt_text="fox", seed=3, max_new_tokens=200, stop_on_eos=False)
    whole = run(loaded, spec).outputs[0]
    assert "\N{REPLACEMENT CHARACTER}" in whole
    stop = next(letter for letter in whole[10:] if letter.isascii())
    stopped = run(loaded, replace(spec, stop_sequences=(stop,)))
    assert stopped.outputs == [whole[: whole.index(stop)]]


def test_an_unfinished_character_at_the_end_is_left_out() -> None:
    loaded = build("gpt2", kind="bpe")
    smile = loaded.tokenizer.encode("\U0001f600")
    with torch.no_grad():  # a model that says the first byte of four for ever
        for parameter in loaded.model.parameters():
            parameter.zero_()
        loaded.model.head_weight()[smile[0]] = 1.0
        dict(loaded.model.named_parameters())["ln_f.bias"].fill_(1.0)
    result = run(loaded, GenerateSpec(temperature=0, max_new_tokens=1))
    assert (result.outputs, result.steps) == ([""], 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_give_no_finite_logits_are_told(family: str, temperature: float) -> None:
    loaded = build(family)
    with torch.no_grad():
        loaded.model.head_weight()[7, 0] = math.nan
    with pytest.raises(LossNotFinite, match="its weights are not finite"):
        run(loaded, GenerateSpec(prompt_text="The", temperature=temperature, max_new_tokens=4))


def test_it_stops_when_told_and_gives_what_there_is() -> None:
    asked = iter([False] * 5 + [True])
    spec = GenerateSpec(prompt_text="fox", num_return_sequences=2, seed=1, stop_on_eos=False)
    result = generate(build("gpt2"), spec, should_stop=lambda: next(asked))
    assert result.steps == 10
    assert all(0 < len(text) <= 5 for text in result.outputs)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_in_training_is_used_without_dropout_and_goes_on_training(training: bool) -> None:
    loaded = build("char_lstm")
    loaded.model.train(training)
    spec = GenerateSpec(prompt_text="fox", temperature=0)
    assert run(loaded, spec) == run(loaded, spec)
    assert loaded.model.training == training
    loaded.model(torch.tensor([[5, 6]])).sum().backward()


def test_a_saved_model_generates_the_same(tmp_path: Path) -> None:
    for family in FAMILIES:
        loaded = build(family)
        (tmp_path / family).mkdir()
        model_family(family).save(loaded.model, tmp_path / family)
        loaded.tokenizer.save(tmp_path / family)
        again = load_model(tmp_path / family, device="cpu")
        spec = GenerateSpec(prompt_text="fox", seed=9)
        assert run(again, spec) == run(loaded, spec)


def test_the_result_is_what_clients_see() -> None:
    result = Generation(outputs=["\u00e9"], steps=1, eos_terminated=[True])
    expected = {"outputs": ["\u00e9"], "steps": 1, "eos_terminated": [True]}
    assert json.loads(result.to_json()) == expected
