"""Reading the end of a file backwards, and what is appended to it."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_app.api.tail import (
    LONGEST_LINE,
    Line,
    is_line_end,
    last_lines,
    lines_from,
    start_of_last_lines,
)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "count", "expected"),
    [
        (b"", 1, b""),
        (b"a", 1, b"a"),
        (b"a\n", 1, b"a\n"),
        (b"a\nb", 1, b"b"),
        (b"a\nb\n", 1, b"b\n"),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\n", 9, b"a\nb\n"),
        (b"\n\n\n", 2, b"\n\n"),
        (b"a\n" * 100_000 + b"z\n", 2, b"a\nz\n"),
        (b"first\n" + b"x" * 200_000 + b"\nlast\n", 2, b"x" * 200_000 + b"\nlast\n"),
    ],
)
def test_the_last_lines_are_found(tmp_path: Path, data: bytes, count: int, expected: bytes) -> None:
    path = written(tmp_path / "log", data)
    assert b"".join(last_lines(path, count)) == expected
    assert start_of_last_lines(path, count) == len(data) - len(expected)


@given(
    lines=st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), max_size=30),
    ended=st.booleans(),
    count=st.integers(1, 40),
)
def test_the_last_lines_are_those_of_splitlines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ended: bool, count: int
) -> None:
    data = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    path = written(tmp_path_factory.mktemp("tail") / "log", data)
    whole = [line + b"\n" for line in data.split(b"\n")]
    whole[-1] = whole[-1].removesuffix(b"\n")
    expected = [line for line in whole if line][-count:]
    assert b"".join(last_lines(path, count)) == b"".join(expected)


def test_a_line_of_100_megabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    tracemalloc.start()
    assert sum(len(block) for block in last_lines(path, 1)) == 100_000_000
    assert sum(len(line.text) for line in lines_from(path, 0, whole=True)) == 100_000_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000


def test_a_file_that_is_not_there_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert list(last_lines(path, 5)) == []
    assert start_of_last_lines(path, 5) == 0
    assert list(lines_from(path, 0, whole=True)) == []


def test_a_file_that_shrinks_while_it_is_read_ends_early(tmp_path: Path) -> None:
    path = written(tmp_path / "log", b"x" * 200_000)
    blocks = last_lines(path, 1)
    next(blocks)
    path.write_bytes(b"")
    assert list(blocks) == []


def test_lines_are_followed_from_where_the_last_one_ended(tmp_path: Path) -> None:
    path = written(tmp_path / "log", b"one\ntwo\nthr")
    assert list(lines_from(path, 0, whole=False)) == [Line(b"one", 4), Line(b"two", 8)]
    written(path, b"one\ntwo\nthree\n")
    assert list(lines_from(path, 8, whole=False)) == [Line(b"three", 14)]


def test_a_last_line_without_an_end_is_given_when_nothing_will_be_added(tmp_path: Path) -> None:
    path = written(tmp_path / "log", b"one\ntw")
    assert list(lines_from(path, 0, whole=True)) == [Line(b"one", 4), Line(b"tw", 6)]


def test_a_very_long_line_is_followed_in_pieces(tmp_path: Path) -> None:
    path = written(tmp_path / "log", b"x" * (LONGEST_LINE + 5))
    (piece,) = lines_from(path, 0, whole=False)
    assert piece == Line(b"x" * LONGEST_LINE, LONGEST_LINE)


def test_behind_the_end_there_is_nothing(tmp_path: Path) -> None:
    assert list(lines_from(written(tmp_path / "log", b"a\n"), 10, whole=True)) == []


def test_a_line_ends_behind_its_newline_or_where_the_file_does(tmp_path: Path) -> None:
    path = written(tmp_path / "log", b"one\ntwo\nthr")
    assert [offset for offset in range(20) if is_line_end(path, offset)] == [0, 4, 8, 11]
    assert not is_line_end(path, 10**18 - 1)


def test_a_line_that_is_too_long_ends_in_pieces(tmp_path: Path) -> None:
    path = written(tmp_path / "log", b"one\n" + b"x" * (3 * LONGEST_LINE) + b"\n")
    ends = [line.end for line in lines_from(path, 0, whole=False)]
    assert all(is_line_end(path, end) for end in ends)
    assert not is_line_end(path, 5)


def test_where_there_is_no_file_no_line_has_ended_yet(tmp_path: Path) -> None:
    assert is_line_end(tmp_path / "none", 0)
    assert not is_line_end(tmp_path / "none", 1)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_file_is_like_one_that_is_missing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind == "link":
        path.symlink_to(written(tmp_path / "secret", b"a\nb\n"))
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()

    assert list(last_lines(path, 5)) == []
    assert start_of_last_lines(path, 1) == 0
    assert not is_line_end(path, 2)
    assert list(lines_from(path, 0, whole=True)) == []


def test_a_log_that_a_disk_does_not_read_is_told_before_the_answer_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("trainer_app.api.tail._start_of_last", broken)
    with pytest.raises(OSError, match="Input/output error"):
        last_lines(path, 1)
