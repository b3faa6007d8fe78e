"""Words are found as tokenizers finds them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from backends.tokenizers import words
from backends.tokenizers.bpe import PATTERN
from backends.tokenizers.words import count_words

SPLIT = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
PIECES = [
    *" \t\n\n\r\x0b\x0c\x1c\x85\u00a0\u2028\u3000'.}1aZS\u00e9\u0301\u0131\u65e5\ufeff\0\u00b2",
    *("\r\n", "'s", "'LL", "'\u017f", "'Re", "'dx", "    ", "1234567", "\ufb06", "\U0001f600"),
]
TEXTS = st.text() | st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8")).map("".join)


def expected(texts: Iterable[str]) -> Counter[bytes]:
    return Counter(word.encode() for text in texts for word, _ in SPLIT.pre_tokenize_str(text))


@settings(max_examples=200)
@given(st.lists(TEXTS, max_size=5))
@example(["a's", "s", "'", "s'ReX", "'v", "e"])
@example(["!\r\n\r\n \n x", "!\n", "\n!\r", "\n  ", "a"])
def test_texts_give_the_words_of_tokenizers(texts: list[str]) -> None:
    assert count_words(texts) == expected(texts)


@pytest.mark.parametrize("alphabet", [" \t\n\r'.aS1", " \n\r'!r\u017f\u00e9"])
def test_all_short_texts_give_the_words_of_tokenizers(alphabet: str) -> None:
    texts = ["".join(letters) for size in range(1, 5) for letters in product(alphabet, repeat=size)]
    assert count_words(texts) == expected(texts)


def test_words_of_many_texts_are_counted_together(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "BATCH", 1_000)
    monkeypatch.setattr(words, "WAITING", 500)
    texts = [*text.splitlines(True), *["gr\u00f6\u00dfer als ASCII\n"] * 400, "\u65e5\u672c" * 400]
    assert count_words(texts) == expected(texts)


def test_no_text_has_no_words() -> None:
    assert count_words([]) == count_words(["", ""]) == Counter()


def test_memory_is_bounded_and_frequent_words_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "BATCH", 1_000)
    monkeypatch.setattr(words, "WAITING", 100)
    chance = random.Random(0)
    rare = [" ".join(chance.choices("abcdefgh", k=3)) + f"{n}" for n in range(2_000)]
    texts = [f"{word} often {''.join(chance.choices('ab', k=12))}\n" for word in rare]
    counted = count_words(texts, most_characters=2_000)
    assert counted[b" often"] == 2_000
    assert sum(map(len, counted)) <= 2_000
    assert counted == count_words(texts, most_characters=2_000)
