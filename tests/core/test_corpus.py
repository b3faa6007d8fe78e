"""How a corpus is read and cut."""

from __future__ import annotations

import hashlib
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_app.core import corpus
from trainer_app.core.corpus import BLOCK_BYTES, read_units
from trainer_app.core.corpus_size import LONGEST_UNIT
from trainer_app.errors import CorpusChanged, CorpusEmpty, CorpusNotFound, CorpusNotText

Write = Callable[[bytes], tuple[Path, str]]

# blanks of all kinds, what begins as one does, and what is none: U+001B, U+200B
PIECES = [*"\n\n\n \t\r\v\f\x1b\x1c\x85\u00a0\u1680\u2028\u3000", *"\u00c2\u200b\u3042\u65e5xy"]
LINES = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


def units(written: tuple[Path, str]) -> list[str]:
    path, sha256 = written
    return [text for block in read_units(path, sha256=sha256) for text in block.texts()]


def test_blank_lines_often_enough_make_units_of_paragraphs(write_corpus: Write) -> None:
    text = "".join(f"first line {n}\nsecond line {n}\n\n" for n in range(20))
    cut = units(write_corpus(text.encode()))
    assert cut == [f"first line {n}\nsecond line {n}\n\n" for n in range(20)]


def test_few_blank_lines_make_units_of_lines_with_the_blanks_that_follow(
    write_corpus: Write,
) -> None:
    text = "one\ntwo\n\n \nthree\nfour"
    assert units(write_corpus(text.encode())) == ["one\n", "two\n\n \n", "three\n", "four"]


@pytest.mark.parametrize("few", [0, 1_000])
@pytest.mark.parametrize("paragraphs", [False, True])
@given(LINES)
def test_a_unit_begins_at_a_line_that_is_not_blank_for_str(
    tmp_path_factory: pytest.TempPathFactory, few: int, paragraphs: bool, text: str
) -> None:
    text = ("x\n\n" * 16 if paragraphs else "x\n") + text
    expected: list[str] = []
    before = ""
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if not expected or (line.strip() and not (paragraphs and before.strip())):
            expected.append("")
        expected[-1] += line
        before = line
    path = tmp_path_factory.getbasetemp() / "corpus.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "FEW_LINES", few)
        assert units((path, hashlib.sha256(text.encode()).hexdigest())) == expected


def test_units_together_are_the_text_whatever_the_block_borders(write_corpus: Write) -> None:
    line = "größer als ein Byte: 日本語 🎉\r\n"
    text = line * (3 * BLOCK_BYTES // len(line.encode())) + "\n\n\n" + "the end"
    cut = units(write_corpus(text.encode()))
    assert "".join(cut) == text
    assert cut[-2] == line + "\n\n\n"
    assert cut[-1] == "the end"


def test_what_is_appended_while_a_corpus_is_read_is_no_part_of_it(write_corpus: Write) -> None:
    text = b"one line of it\n" * (BLOCK_BYTES // 5)
    path, sha256 = write_corpus(text)
    read = 0
    for block in read_units(path, sha256=sha256):
        read += len(block.data)
        with path.open("ab") as file:
            file.write(bytes(2 * BLOCK_BYTES))
    assert read == len(text)


def test_sizes_are_bytes_and_hashes_ignore_the_blanks_around_a_text(write_corpus: Write) -> None:
    path, sha256 = write_corpus("ö\nsame\n  same\n\nother\n".encode())
    (block, last) = read_units(path, sha256=sha256)
    assert block.sizes.tolist() == [3, 5, 8]
    assert block.hashes()[1] == block.hashes()[2] != block.hashes()[0]
    assert last.texts() == ["other\n"]


def test_a_border_is_followed_by_a_line_that_is_not_blank(write_corpus: Write) -> None:
    text = ("a\n" + "\n" * 5 + " \t\n" + "b\n\u3000\n" + "  c\n") * 9
    assert not any(unit.split("\n", 1)[0].isspace() for unit in units(write_corpus(text.encode())))


def test_a_long_line_is_cut_at_characters_and_a_long_paragraph_at_lines(
    write_corpus: Write,
) -> None:
    cut = units(write_corpus(("é" * 40_000 + "\nshort\n").encode()))
    assert [len(unit) for unit in cut] == [LONGEST_UNIT, LONGEST_UNIT, 40_001 - 2 * LONGEST_UNIT, 6]
    paragraphs = "line of text\n" * 3_000 + "\n" + "short\n\n" * 20
    cut = units(write_corpus(paragraphs.encode()))
    assert all(unit.endswith("\n") and len(unit) <= LONGEST_UNIT for unit in cut)
    assert "".join(cut) == paragraphs


@pytest.mark.parametrize("content", [b"x" * (64 << 20), b"\n" * (64 << 20) + b"x"])
def test_a_file_of_one_line_or_of_blank_lines_is_read_in_bounded_memory(
    write_corpus: Write, content: bytes
) -> None:
    path, sha256 = write_corpus(content)
    tracemalloc.start()
    try:
        total = sum(int(block.sizes.sum()) for block in read_units(path, sha256=sha256))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == len(content)
    assert peak < 32 << 20


def test_a_leading_byte_order_mark_is_dropped(write_corpus: Write) -> None:
    assert units(write_corpus(b"\xef\xbb\xbfone\ntwo\n")) == ["one\n", "two\n"]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n\t\n  \n", b"\n" * 40_000])
def test_a_corpus_without_text_is_refused(write_corpus: Write, content: bytes) -> None:
    with pytest.raises(CorpusEmpty):
        units(write_corpus(content))


@pytest.mark.parametrize("offset", [5, BLOCK_BYTES - 1, BLOCK_BYTES + 7])
@pytest.mark.parametrize("bad", [b"\xff", b"\0", b"\xe2\x28\xa1"])
def test_bytes_that_are_no_text_are_refused_with_their_offset(
    write_corpus: Write, offset: int, bad: bytes
) -> None:
    with pytest.raises(CorpusNotText, match=rf"byte {offset}:"):
        units(write_corpus(b"a" * offset + bad + b"a" * 10))


def test_a_character_cut_off_at_the_end_of_the_file_is_refused(write_corpus: Write) -> None:
    with pytest.raises(CorpusNotText, match="byte 4:"):
        units(write_corpus(b"text\xe6\x97"))


def test_a_corpus_that_was_edited_is_refused(write_corpus: Write) -> None:
    path, _ = write_corpus(b"edited\n")
    with pytest.raises(CorpusChanged):
        units((path, hashlib.sha256(b"as posted\n").hexdigest()))


def test_a_corpus_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusNotFound):
        units((tmp_path / "gone.txt", ""))
