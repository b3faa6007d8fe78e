"""Hashes of units: of their text, not of where it stands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer_app.core.units import Units

BLANKS = st.text(" \t\r\n\v\f", max_size=20)


def units(*texts: str) -> Units:
    raw = [text.encode() for text in texts]
    return Units(
        data=b"".join(raw),
        sizes=np.array([len(data) for data in raw], dtype=np.uint32),
        forced=np.zeros(len(raw), dtype=np.bool_),
    )


def hashes(*texts: str) -> NDArray[np.uint64]:
    return units(*texts).hashes()


@given(st.lists(st.tuples(BLANKS, st.text(max_size=30), BLANKS), min_size=1, max_size=8))
def test_neighbours_and_blanks_around_a_text_do_not_change_its_hash(
    texts: list[tuple[str, str, str]],
) -> None:
    padded = [f" {before}{text}{after}\n" for before, text, after in texts]
    alone = [
        hashes(f"{text.strip(' ' + chr(9) + chr(13) + chr(10) + chr(11) + chr(12))}\n")[0]
        for _, text, _ in texts
    ]
    assert hashes(*padded).tolist() == [int(value) for value in alone]


def test_texts_that_differ_in_a_byte_a_place_or_their_length_have_other_hashes() -> None:
    letters = "abcdefgh"
    texts = {letters * 3, "", "a", "aa", "a\0", "\0a", "\0", "\0\0"}
    texts |= {letters * n + letters[:k] for n in range(4) for k in range(8)}
    texts |= {f"{'x' * place}y{'x' * (40 - place)}" for place in range(41)}
    texts |= {"12345678abcdefgh", "abcdefgh12345678"}
    found = hashes(*(f"{text}\n" for text in sorted(texts)))
    assert len(set(found.tolist())) == len(texts)


def test_a_text_has_the_hash_that_it_always_had() -> None:
    texts = ["a\n", " \n", "eight by\n", "\tnine byte\r\n", "\u00e9\u65e5\u672c\n", "x" * 8_000]
    assert hashes(*texts).tolist() == [  # else a split would hold out others than it did
        0x008DBFB7F6A331DE,
        0x238275BC38FCBE91,
        0x951ABF3B37EC7EB1,
        0xEB9103F19B5CAF1F,
        0xA9CAE23BF16C8EE0,
        0x7660B5FBB17B8CE6,
    ]


def test_each_bit_of_a_hash_is_set_half_of_the_time() -> None:
    found = hashes(*(f"line {number}\n" for number in range(4_000)))
    shares = [
        (int(bit), float(((found >> np.uint64(bit)) & np.uint64(1)).mean())) for bit in range(64)
    ]
    assert all(share == pytest.approx(0.5, abs=0.05) for _, share in shares)


def test_texts_are_found_by_their_number() -> None:
    block = units("one\n", "zw\u00f6lf\n", "\u4e09")
    assert block.texts() == ["one\n", "zw\u00f6lf\n", "\u4e09"]
