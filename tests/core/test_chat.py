"""Chats with models that only continue texts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backends.contracts import EOS_ID, Cache, CausalModel, ModelConfig
from backends.loading import model_family, tokenizer_kind
from backends.models.kv_cache import KeyValueCache
from backends.registry import MODEL_FAMILIES
from trainer_app.core.chat import prompt, reply
from trainer_app.core.chat_spec import ChatSpec
from trainer_app.core.generate import generate
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.loaded import LoadedModel

CORPUS = "User: How are you?\nAssistant: I am well, and you?\n"
TURNS = [("one", "two"), ("three", "four")]


def build(family: str, context: int = 64) -> LoadedModel:
    tokenizer = tokenizer_kind("char").train([CORPUS], vocab_size=100, min_frequency=1)
    torch.manual_seed(0)
    config = ModelConfig(
        family=family, size="tiny", vocab_size=tokenizer.vocab_size, max_seq_len=context
    )
    model = model_family(family).build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # surer of itself than a fresh model
    return LoadedModel(model=model, tokenizer=tokenizer, device="cpu")


def test_the_prompt_is_the_transcript_so_far() -> None:
    tokenizer = build("gpt2").tokenizer
    assert prompt(TURNS, "five", tokenizer, tokens=1_000) == (
        "User: one\nAssistant: two\nUser: three\nAssistant: four\nUser: five\nAssistant:"
    )


def test_the_oldest_turns_are_left_out_until_it_fits() -> None:
    tokenizer = build("gpt2").tokenizer
    latest = "User: three\nAssistant: four\nUser: five\nAssistant:"
    assert prompt(TURNS, "five", tokenizer, tokens=len(latest)) == latest
    assert prompt(TURNS, "five", tokenizer, tokens=len(latest) - 1) == "User: five\nAssistant:"
    assert prompt(TURNS, "five", tokenizer, tokens=1) == "User: five\nAssistant:"


@pytest.mark.parametrize("family", MODEL_FAMILIES)
@pytest.mark.parametrize("history", [[], TURNS])
def test_an_answer_is_what_the_model_writes_before_the_users_next_turn(
    family: str, history: list[tuple[str, str]]
) -> None:
    loaded = build(family, context=256)
    text = generate(
        loaded,
        GenerateSpec(
            prompt_text=prompt(history, "How are you?", loaded.tokenizer, tokens=1_000),
            max_new_tokens=30,
            temperature=0.8,
            top_k=50,
            top_p=0.95,
            seed=3,
        ),
        should_stop=lambda: False,
    ).outputs[0]
    spec = ChatSpec(message="How are you?", seed=3, max_new_tokens=30)
    answer = reply(loaded, spec, history, should_stop=lambda: False)
    assert answer == text.partition("\nUser:")[0].strip()


class Reciter(CausalModel):
    """Writes a text, whatever it has read, and then ends it."""

    gains_by_compiling = False

    def __init__(self, like: LoadedModel, text: str) -> None:
        super().__init__()
        self.config = like.model.config
        self._ids = iter([*like.tokenizer.encode(text), EOS_ID])

    def hidden(self, ids_BT: Tensor) -> Tensor:
        raise NotImplementedError

    def head_weight(self) -> Tensor:
        raise NotImplementedError

    def new_cache(self, batch: int, tokens: int) -> Cache:
        return KeyValueCache(
            layers=0, batch=batch, heads=0, max_len=tokens, head_width=0, like=torch.empty(0)
        )

    def decode(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        logits_BV = torch.zeros(len(ids_BT), self.config.vocab_size)
        logits_BV[:, next(self._ids)] = 1e3
        return logits_BV


@pytest.mark.parametrize(
    ("text", "tokens", "answer"),
    [
        ("I am well\nUser: you?", 60, "I am well"),
        *(("I am well\nUser: you?", 9 + part, "I am well") for part in range(7)),
        ("I am well\nUs", 60, "I am well\nUs"),  # so it ended the text itself
        ("I am well, Us", 13, "I am well, Us"),
        ("\nUser: you?", 4, ""),
    ],
)
def test_of_an_answer_that_is_cut_off_no_begun_turn_of_the_users_is_left(
    text: str, tokens: int, answer: str
) -> None:
    known = build("gpt2", context=256)
    loaded = LoadedModel(model=Reciter(known, text), tokenizer=known.tokenizer, device="cpu")
    spec = ChatSpec(message="How are you?", max_new_tokens=tokens)
    assert reply(loaded, spec, TURNS, should_stop=lambda: False) == answer


def test_what_was_said_before_counts() -> None:
    loaded = build("gpt2", context=256)
    spec = ChatSpec(message="How are you?", seed=3, max_new_tokens=30)
    fresh = reply(loaded, spec, [], should_stop=lambda: False)
    assert reply(loaded, spec, TURNS, should_stop=lambda: False) != fresh


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_an_answer_longer_than_the_context_is_written(family: str) -> None:
    loaded = build(family, context=16)
    answers = [
        reply(
            loaded,
            ChatSpec(message="How are you? " * 9, seed=seed, max_new_tokens=60),
            TURNS,
            should_stop=lambda: False,
        )
        for seed in range(5)
    ]
    assert len("".join(answers)) > 30


def test_an_answer_stops_when_it_is_asked_to() -> None:
    spec = ChatSpec(message="How are you?", seed=1)
    assert reply(build("gpt2"), spec, [], should_stop=lambda: True) == ""
