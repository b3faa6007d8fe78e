"""One token a character."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contracts import UNK_ID
from backends.loading import load_tokenizer
from backends.tokenizers.char import BATCH_CHARS, KIND
from trainer_app.errors import ModelIncompatible, TokenizerTrainFailed


def test_characters_are_sorted_after_the_special_tokens() -> None:
    tokenizer = KIND.train(["ba", "\nc\U0001f600"], vocab_size=100, min_frequency=1)
    assert [tokenizer.token_text(i) for i in range(4, 9)] == ["\n", "a", "b", "c", "\U0001f600"]
    assert tokenizer.encode("cab\n\U0001f600") == [7, 5, 6, 4, 8]
    assert tokenizer.vocab_size == 9


def test_an_unseen_character_is_unknown_and_leaves_no_text() -> None:
    tokenizer = KIND.train(["ab"], vocab_size=100, min_frequency=1)
    assert tokenizer.encode("a\U0010ffffb\ud800") == [4, UNK_ID, 5, UNK_ID]
    assert tokenizer.decode([4, UNK_ID, 5]) == "ab"


def test_a_character_rarer_than_the_least_frequency_is_unknown() -> None:
    tokenizer = KIND.train(["aab", "c", "b"], vocab_size=100, min_frequency=2)
    assert tokenizer.encode("abc") == [4, 5, UNK_ID]


def test_more_characters_than_the_vocabulary_holds_are_refused_with_both_numbers() -> None:
    with pytest.raises(
        TokenizerTrainFailed, match=r"vocab_size 6 .* 3 different characters .* need 7"
    ):
        KIND.train(["abc"], vocab_size=6, min_frequency=1)
    assert KIND.train(["abc"], vocab_size=7, min_frequency=1).vocab_size == 7


@pytest.mark.parametrize("texts", [[], ["", ""], ["abc"]])
def test_a_corpus_that_gives_no_character_is_refused(texts: list[str]) -> None:
    with pytest.raises(TokenizerTrainFailed, match="no character occurs 2 times"):
        KIND.train(texts, vocab_size=100, min_frequency=2)


def test_a_long_corpus_is_counted_in_batches() -> None:
    texts = ["a" * BATCH_CHARS, "b", "c" * BATCH_CHARS, "b"]
    assert KIND.train(texts, vocab_size=100, min_frequency=2).vocab_size == 7


@given(st.text(min_size=1))
def test_a_text_is_its_own_vocabulary(text: str) -> None:
    tokenizer = KIND.train([text], vocab_size=10_000, min_frequency=1)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_file_of_longer_tokens_is_refused(tmp_path: Path) -> None:
    KIND.train(["ab"], vocab_size=100, min_frequency=1).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["ab"] = 6
    path.write_text(json.dumps(content))
    with pytest.raises(ModelIncompatible, match="no single characters"):
        load_tokenizer(tmp_path)
