"""The demo's corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer_app.cli.demo_corpus import write_corpus
from trainer_app.errors import CorpusEmpty


def test_it_is_the_source_in_the_order_of_names(tmp_path: Path) -> None:
    source = tmp_path / "lib"
    (source / "test").mkdir(parents=True)
    (source / "b.py").write_text("b = 1\n\n\n\n\n")
    (source / "a.py").write_text("a = 1")
    (source / "test" / "c.py").write_text("left = out\n")
    (source / "latin.py").write_bytes(b"# \xe4\n")
    (source / "nul.py").write_bytes(b"# \0\n")
    (source / "empty.py").write_text("\n")
    target = tmp_path / "corpus.txt"
    written = write_corpus(target, source)
    assert target.read_text() == "a = 1\n\n\nb = 1\n\n\n"
    assert (written.files, written.bytes) == (2, target.stat().st_size)


def test_this_interpreters_library_is_large_enough_to_learn_from(tmp_path: Path) -> None:
    written = write_corpus(tmp_path / "corpus.txt")
    assert written.bytes > 5_000_000
    (tmp_path / "corpus.txt").read_text("utf-8")


def test_a_library_without_source_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(CorpusEmpty, match="holds no Python source"):
        write_corpus(tmp_path / "corpus.txt", tmp_path)
    assert list(tmp_path.iterdir()) == []
