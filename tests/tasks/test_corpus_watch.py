"""An edit of a corpus is noticed also where its ids were made before."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path

import pytest

from tasks import corpus_watch
from tasks.corpus_watch import CorpusWatch
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import StopRequested, never
from trainer_app.errors import CorpusChanged

TEXT = b"a text to learn from\n"
LONG_AGO = time.time() - 3_600


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT)
    return path


def watch(corpus: Path, posted_at: float) -> CorpusWatch:
    return CorpusWatch(
        corpus, sha256=sha256(TEXT).hexdigest(), posted_at=posted_at, should_stop=never
    )


def test_an_edit_is_noticed_at_the_next_look(corpus: Path) -> None:
    one = watch(corpus, time.time())
    one.check()
    with corpus.open("ab") as file:
        file.write(b"more\n")
    with pytest.raises(CorpusChanged, match="posted for a text with"):
        one.check()


def test_a_file_that_goes_on_growing_is_no_endless_look(corpus: Path) -> None:
    def grow() -> None:
        with corpus.open("ab") as file:
            file.write(bytes(1 << 21))

    grow()
    looks = 0

    def should_stop() -> None:
        nonlocal looks
        looks += 1
        assert looks < 20, "it reads on"
        grow()

    one = CorpusWatch(corpus, sha256="0" * 64, posted_at=time.time(), should_stop=should_stop)
    with pytest.raises(CorpusChanged):
        one.check()


def test_an_edit_since_the_post_is_noticed_at_the_first_look(corpus: Path) -> None:
    corpus.write_bytes(b"another text")
    with pytest.raises(CorpusChanged):
        watch(corpus, LONG_AGO).check()


def test_the_same_text_written_anew_is_the_same_corpus(corpus: Path) -> None:
    one = watch(corpus, LONG_AGO)
    one.check()
    other = corpus.with_name("b.txt")
    other.write_bytes(TEXT)
    other.replace(corpus)
    one.check()


def test_a_file_that_nobody_has_touched_is_not_read(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_watch, "sha256_of", lambda *_: pytest.fail("it was read"))
    one = watch(corpus, time.time() + 60)
    for _ in range(3):
        one.check()


def test_a_file_that_is_gone_is_left_to_whoever_reads_it(corpus: Path) -> None:
    one = watch(corpus, time.time())
    corpus.unlink()
    one.check()


def test_a_run_that_is_to_stop_does_not_look(corpus: Path) -> None:
    corpus.write_bytes(b"another text")
    CorpusWatch(
        corpus, sha256="0" * 64, posted_at=LONG_AGO, should_stop=lambda: StopReason.DRAIN
    ).check()


def test_a_look_is_broken_off_by_a_stop_and_taken_again(corpus: Path) -> None:
    corpus.write_bytes(b"another text")
    answers = iter([None, StopReason.PAUSE])
    one = CorpusWatch(
        corpus, sha256="0" * 64, posted_at=LONG_AGO, should_stop=lambda: next(answers, None)
    )
    one.check()
    with pytest.raises(CorpusChanged):
        one.check()


def test_an_interruption_passes_through(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> str:
        raise StopRequested(StopReason.CANCEL)

    monkeypatch.setattr(corpus_watch, "sha256_of", interrupted)
    with pytest.raises(StopRequested):
        watch(corpus, LONG_AGO).check()


def test_what_is_no_plain_file_any_more_is_not_waited_for(corpus: Path) -> None:
    one = watch(corpus, time.time())
    corpus.unlink()
    os.mkfifo(corpus)
    with pytest.raises(CorpusChanged, match="of no text"):
        one.check()
