"""The merges are those of tokenizers, and those of the definition."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, trainers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from backends.contracts import SPECIAL_TOKENS
from backends.loading import tokenizer_kind
from backends.tokenizers.bpe import BYTE_LETTERS, pre_tokenizer
from backends.tokenizers.merges import learn_merges

Words = dict[bytes, int]
ALPHABET = {b"a": 0, b"b": 1, b"c": 2}


def by_definition(
    words: Words, *, tokens: int, min_frequency: int
) -> tuple[Words, list[tuple[bytes, bytes]]]:
    """Count all pairs anew for each merge."""
    ids = dict(ALPHABET)
    texts = [([bytes([byte]) for byte in word], count) for word, count in words.items()]
    merges = []
    while len(ids) < tokens:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for parts, count in texts:
            for pair in pairwise(parts):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        if pairs[best] < min_frequency:
            break
        merges.append(best)
        ids.setdefault(b"".join(best), len(ids))
        for parts, _ in texts:
            place = 0
            while place + 1 < len(parts):
                if (parts[place], parts[place + 1]) == best:
                    parts[place : place + 2] = [b"".join(best)]
                place += 1
    return ids, merges


WORDS = st.dictionaries(
    st.binary(min_size=1, max_size=9).map(lambda raw: bytes(b"abc"[byte % 3] for byte in raw))
    | st.integers(1, 20).map(lambda size: b"a" * size),
    st.integers(1, 9),
    max_size=9,
)


@given(WORDS, st.integers(3, 14), st.integers(0, 4))
@example({b"aaaaaaa": 1, b"aaa": 3, b"aaaa": 2}, 14, 1)
@example({b"abab": 2, b"cabc": 1}, 14, 0)
@example({}, 9, 1)
def test_merges_follow_the_definition(words: Words, tokens: int, min_frequency: int) -> None:
    learned = learn_merges(words, ALPHABET, tokens=tokens, min_frequency=min_frequency)
    assert learned == by_definition(words, tokens=tokens, min_frequency=max(min_frequency, 1))


@pytest.mark.parametrize(("vocab_size", "min_frequency"), [(261, 1), (1_500, 2), (1_614, 4)])
def test_the_tokenizer_is_the_one_that_tokenizers_trains(
    text: str, vocab_size: int, min_frequency: int, tmp_path: Path
) -> None:
    theirs = HuggingFaceTokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizer()
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        initial_alphabet=sorted(BYTE_LETTERS),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        show_progress=False,
    )
    theirs.train_from_iterator([text], trainer)
    ours = tokenizer_kind("bpe").train([text], vocab_size=vocab_size, min_frequency=min_frequency)
    ours.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_bytes())
    assert saved == json.loads(theirs.to_str())
