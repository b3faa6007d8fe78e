"""How many tokens a text can give a tokenizer at the very most, from its size or its pieces.

For refusing, before anything is queued, what no text of that size could give; so every figure from
a size is an upper bound of what training reaches. Data only: importing this imports no tokenizer.
"""

from __future__ import annotations

from typing import Final

from backends.registry import MIN_VOCAB_SIZES, TOKENIZER_MIN_VOCAB

LONGEST_PIECE: Final = 16  # characters of a piece of sentencepiece
_BYTES: Final = 256  # that sentencepiece has where a vocabulary has room for more than them
_WITHOUT_BYTES: Final = MIN_VOCAB_SIZES["sentencepiece"] - 1  # that is with one character


def most_tokens(method: str, *, vocab_size: int, text_bytes: int, min_frequency: int) -> int | None:
    """What a vocabulary of ``vocab_size`` can reach; None: the kind asks for no certain size.

    bpe: beside the special tokens and the bytes there is one for each merge. A merge takes a pair
    that occurs min_frequency times; so often, or half so often where a token is merged with its
    like ("aaa" has two pairs and room for one merge), two places of the text become one. The text
    has a place a byte, and at least one of them is left.

    sentencepiece: the fixed ones, with the bytes where there is room for them, and the pieces.
    """
    if method == "bpe":
        return MIN_VOCAB_SIZES[method] + max(0, text_bytes - 1) // -(-min_frequency // 2)
    if method == "sentencepiece":
        fixed = _WITHOUT_BYTES
        if vocab_size > fixed + _BYTES:
            fixed += _BYTES
        return fixed + _most_pieces(text_bytes)
    return None


def sizes_to_ask_for(method: str, *, most: int, text_bytes: int) -> str:
    """In words, what is not refused, where ``most_tokens`` is ``most``."""
    if method == "sentencepiece":
        return sentencepiece_sizes(_most_pieces(text_bytes), characters=1)
    return f"{TOKENIZER_MIN_VOCAB[method]} to {most}"


def sentencepiece_sizes(pieces: int, *, characters: int) -> str:
    """In words, the vocabularies that a text of so many pieces, one at least, can give.

    ``characters`` of the pieces are characters. There are two ranges: a vocabulary that has
    room for the bytes and one piece more always holds them, and then all the characters, too.
    Raises ValueError for more characters than pieces, which would make the second range empty.
    """
    if not 1 <= characters <= pieces:
        raise ValueError(f"{characters} characters among {pieces} pieces")
    with_bytes = _WITHOUT_BYTES + _BYTES
    least = TOKENIZER_MIN_VOCAB["sentencepiece"]
    most = min(_WITHOUT_BYTES + pieces, with_bytes)
    least_with, most_with = with_bytes + characters, with_bytes + pieces
    if least_with == most + 1:
        return f"{least} to {most_with}"
    without = f"{least} to {most}, or " if least <= most else ""
    return f"{without}{least_with} to {most_with} with the 256 bytes among them"


def _most_pieces(text_bytes: int) -> int:
    # Each is a part of the text; of each length no more begin in a text than it has bytes.
    return LONGEST_PIECE * text_bytes


def needs_frequent_characters(method: str) -> bool:
    """Whether training fails where no character occurs min_frequency times."""
    return method != "bpe"
