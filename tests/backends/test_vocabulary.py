"""What a refusal says of vocabularies."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.registry import TOKENIZER_KINDS
from backends.vocabulary import most_tokens, sentencepiece_sizes, sizes_to_ask_for


def is_empty(sizes: str) -> bool:
    found = re.findall(r"(\d+) to (\d+)", sizes)
    assert found
    return any(int(low) > int(high) for low, high in found)


@given(st.data(), st.integers(1, 1_000))
def test_no_range_of_sentencepiece_is_empty(data: st.DataObject, pieces: int) -> None:
    characters = data.draw(st.integers(1, pieces))
    assert not is_empty(sentencepiece_sizes(pieces, characters=characters))


@given(
    st.sampled_from(sorted(TOKENIZER_KINDS)),
    st.integers(100, 100_000),
    st.integers(1, 10_000),
    st.integers(1, 50),
)
def test_no_range_that_a_size_gives_is_empty(
    method: str, vocab_size: int, text_bytes: int, min_frequency: int
) -> None:
    most = most_tokens(
        method, vocab_size=vocab_size, text_bytes=text_bytes, min_frequency=min_frequency
    )
    if most is not None:
        assert not is_empty(sizes_to_ask_for(method, most=most, text_bytes=text_bytes))


def test_pieces_that_lack_characters_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="4 characters among 3 pieces"):
        sentencepiece_sizes(3, characters=4)
