"""Byte-level BPE: any text comes back, and lines can be encoded apart."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.contracts import SPECIAL_TOKENS, Tokenizer
from backends.loading import tokenizer_kind
from backends.tokenizers.bpe import KIND
from trainer_app.errors import TokenizerTrainFailed

PIECES = [*" \t\n\n\r\x0b\x0c\x1c\x85\u2028'.}1aZ\u00e9", "\r\n", "'s", "def ", "    ", "[EOS]"]
TEXTS = st.text() | st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8")).map("".join)


@given(TEXTS)
@example("[EOS][PAD] [UNK]\0\r\U0001f600")
def test_any_text_survives_the_round_trip(tokenizers: dict[str, Tokenizer], text: str) -> None:
    ids = tokenizers["bpe"].encode(text)
    assert tokenizers["bpe"].decode(ids) == text
    assert all(token_id >= len(SPECIAL_TOKENS) for token_id in ids)


@settings(max_examples=300)
@given(TEXTS)
@example("}\n\rfoo")
@example("a\n \rb\n\n\t\r\n x")
@example(" \n \x1c\n'\n's\n\u2028a\n  1\n")
def test_a_text_cut_before_a_line_that_is_not_blank_keeps_its_ids(
    tokenizers: dict[str, Tokenizer], text: str
) -> None:
    encode = tokenizers["bpe"].encode
    whole = encode(text)
    for end, _ in filter(lambda at: at[1] == "\n", enumerate(text, start=1)):
        if text[end:].partition("\n")[0].strip():
            assert encode(text[:end]) + encode(text[end:]) == whole


def test_merges_make_words_of_bytes(tokenizers: dict[str, Tokenizer], text: str) -> None:
    bpe = tokenizers["bpe"]
    assert bpe.vocab_size == 600
    assert len(bpe.encode(text)) < len(text) / 2
    assert "self" in {bpe.token_text(token_id) for token_id in range(600)}


def test_a_part_of_a_character_is_readable(tokenizers: dict[str, Tokenizer]) -> None:
    bpe = tokenizers["bpe"]
    parts = [bpe.token_text(token_id) for token_id in bpe.encode("\U0001f600")]
    assert parts == ["\\xf0", "\\x9f", "\\x98", "\\x80"]
    assert bpe.token_text(bpe.encode(" ")[0]) == " "


def test_every_byte_has_a_token_even_if_the_corpus_has_it_not() -> None:
    tiny = KIND.train(["aaaa aaaa"], vocab_size=261, min_frequency=1)
    assert tiny.decode(tiny.encode("\u4e2d\0~")) == "\u4e2d\0~"


def test_a_vocabulary_that_the_corpus_cannot_give_is_refused_with_what_it_gives() -> None:
    message = (
        r"vocab_size 5000 cannot be reached: with min_frequency 2 this corpus gives 263 tokens"
    )
    with pytest.raises(TokenizerTrainFailed, match=message):
        KIND.train(["abcd abcd"], vocab_size=5000, min_frequency=2)
    assert KIND.train(["abcd abcd"], vocab_size=263, min_frequency=2).vocab_size == 263


def test_pairs_rarer_than_the_least_frequency_are_not_merged() -> None:
    with pytest.raises(TokenizerTrainFailed, match="min_frequency 3 this corpus gives 260 tokens"):
        tokenizer_kind("bpe").train(["abcd abcd"], vocab_size=261, min_frequency=3)
