"""How many tokens a text of a size can give a tokenizer at the very most, without reading it.

For refusing, before anything is queued, what no text of that size could give; so every figure is an
upper bound of what training reaches. Data only: importing this imports no tokenizer.
"""

from __future__ import annotations

from typing import Final

from backends.registry import MIN_VOCAB_SIZES

LONGEST_PIECE: Final = 16  # characters of a piece of sentencepiece
_BYTES: Final = 256  # that sentencepiece has where a vocabulary has room for more than them


def most_tokens(method: str, *, vocab_size: int, text_bytes: int, min_frequency: int) -> int | None:
    """What a vocabulary of ``vocab_size`` can reach; None: the kind asks for no certain size.

    bpe: beside the special tokens and the bytes there is one for each merge. A merge takes a pair
    that occurs min_frequency times; so often, or half so often where a token is merged with its
    like ("aaa" has two pairs and room for one merge), two places of the text become one. The text
    has a place a byte, and at least one of them is left.

    sentencepiece: beside the fixed ones each is a part of the text, of 1 to LONGEST_PIECE
    characters; of each of these lengths no more begin in a text than it has bytes.
    """
    fixed = MIN_VOCAB_SIZES[method]
    if method == "bpe":
        return fixed + max(0, text_bytes - 1) // -(-min_frequency // 2)
    if method == "sentencepiece":
        fixed -= 1  # that is with one character
        if vocab_size > fixed + _BYTES:
            fixed += _BYTES
        return fixed + LONGEST_PIECE * text_bytes
    return None


def needs_frequent_characters(method: str) -> bool:
    """Whether training fails where no character occurs min_frequency times."""
    return method != "bpe"
