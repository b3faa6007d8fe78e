"""Counting words in bounded memory."""

from __future__ import annotations

import re
from collections import Counter

from backends.tokenizers.word_counts import count_words

WORDS = re.compile(r"\w+")


def test_every_word_of_a_text_is_counted() -> None:
    assert count_words(["a b a", "", "b c"], WORDS) == Counter(a=2, b=2, c=1)


def test_of_more_words_than_the_memory_holds_the_frequent_ones_are_counted() -> None:
    texts = [f"often unique{number} often twice{number // 2}" for number in range(10_000)]
    counts = count_words(texts, WORDS, most_characters=20_000)
    assert counts["often"] == 20_000
    assert 5_000 < sum(map(len, counts)) <= 20_000
    # what is kept comes from the whole of the text
    kept = [int(word.removeprefix("unique")) for word in counts if word.startswith("unique")]
    assert min(kept) < 1_000
    assert max(kept) > 9_000
    assert counts == count_words(texts, WORDS, most_characters=20_000)


def test_words_that_are_all_frequent_are_thinned_as_well() -> None:
    texts = [" ".join(f"{letter}{number}" for letter in "abcdef" * 20) for number in range(1_000)]
    counts = count_words(texts, WORDS, most_characters=1_000)
    assert 0 < sum(map(len, counts)) <= 1_000
