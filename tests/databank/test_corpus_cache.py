"""Corpora from the data bank: fetched once, by one process, and never another text's bytes."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from tests.databank_server import DataBankServer, Request, sha256, well
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import ShouldStop, StopRequested, never
from trainer_app.databank import corpus_cache
from trainer_app.databank.client import DataBank
from trainer_app.databank.retry import Patience
from trainer_app.errors import CorpusChanged, CorpusNotFound
from trainer_app.file_lock import locked

TEXT = b"Once upon a time there was a king.\n" * 100


class Fetch(Protocol):
    def __call__(
        self, file_id: str = "tale", text: bytes = TEXT, *, should_stop: ShouldStop = never
    ) -> Path: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "corpus_cache"


@pytest.fixture
def fetch(bank: DataBank, folder: Path, patience: Patience) -> Fetch:
    def run(file_id: str = "tale", text: bytes = TEXT, *, should_stop: ShouldStop = never) -> Path:
        return corpus_cache.fetch(
            bank,
            folder,
            file_id,
            sha256=sha256(text),
            max_bytes=10_000_000,
            patience=patience,
            should_stop=should_stop,
            on_message=lambda _: None,
        )

    return run


def test_the_digest_of_a_corpus_that_is_here_is_not_asked_for(
    server: DataBankServer, bank: DataBank, folder: Path, patience: Patience, fetch: Fetch
) -> None:
    server.put(TEXT, "tale")
    fetch()
    asked = len(server.requests)

    digest = corpus_cache.identify(
        bank, folder, "tale", patience=patience, should_stop=never, on_message=pytest.fail
    )

    assert digest == sha256(TEXT)
    assert len(server.requests) == asked


def test_a_corpus_is_fetched_once(server: DataBankServer, fetch: Fetch, folder: Path) -> None:
    server.put(TEXT, "tale")

    first, second = fetch(), fetch()

    assert first == second == folder / "tale.txt"
    assert first.read_bytes() == TEXT
    assert len(server.requests) == 2
    assert {path.name for path in folder.iterdir()} == {"tale.txt", "tale.txt.sha256", ".tale.lock"}


def test_a_text_that_somebody_put_there_is_used_if_it_is_the_right_one(
    server: DataBankServer, fetch: Fetch, folder: Path
) -> None:
    folder.mkdir()
    (folder / "tale.txt").write_bytes(TEXT)

    assert fetch().read_bytes() == TEXT
    assert fetch().read_bytes() == TEXT

    assert server.requests == []


def test_a_text_that_was_edited_is_fetched_again(
    server: DataBankServer, fetch: Fetch, folder: Path
) -> None:
    server.put(TEXT, "tale")
    fetch().write_bytes(b"something else")

    assert fetch().read_bytes() == TEXT


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "something").write_bytes(b"else")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_link_to_a_folder(path: Path) -> None:
    path.symlink_to(path.parent.parent)


def make_link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


@pytest.mark.parametrize("name", ["tale.txt", "tale.txt.sha256", "tale.txt.part"])
@pytest.mark.parametrize(
    "make", [os.mkfifo, make_folder, make_socket, make_link_to_a_folder, make_link_to_nothing]
)
def test_what_stands_in_the_place_of_a_file_and_is_none_is_removed(
    server: DataBankServer, fetch: Fetch, folder: Path, make: Callable[[Path], None], name: str
) -> None:
    server.put(TEXT, "tale")
    if name.endswith(".part"):
        folder.mkdir()
    else:
        fetch()
        (folder / name).unlink()
    make(folder / name)

    assert fetch().read_bytes() == TEXT
    assert {path.name for path in folder.iterdir()} == {"tale.txt", "tale.txt.sha256", ".tale.lock"}
    assert all(path.is_file() and not path.is_symlink() for path in folder.iterdir())


@pytest.mark.parametrize("note", [b"", b"\xff" * 3, b"9" * 10_000])
def test_a_note_that_holds_something_else_is_written_anew(
    fetch: Fetch, folder: Path, note: bytes
) -> None:
    folder.mkdir()
    (folder / "tale.txt").write_bytes(TEXT)
    (folder / "tale.txt.sha256").write_bytes(note)

    assert fetch().read_bytes() == TEXT
    assert (folder / "tale.txt.sha256").read_text("ascii").startswith(f"{sha256(TEXT)} ")


def test_a_text_that_was_replaced_in_the_data_bank_takes_the_place_of_the_old_one(
    server: DataBankServer, fetch: Fetch
) -> None:
    server.put(TEXT, "tale")
    fetch()
    server.put(b"a new tale\n", "tale")

    assert fetch(text=b"a new tale\n").read_bytes() == b"a new tale\n"
    with pytest.raises(CorpusChanged):
        fetch()


def test_a_corpus_that_nobody_has_is_not_found(server: DataBankServer, fetch: Fetch) -> None:
    with pytest.raises(CorpusNotFound, match="tale"):
        fetch()


@pytest.mark.parametrize("file_id", ["../x", "a/b", "", "a" * 65, ".."])
def test_an_id_that_could_lead_out_of_the_cache_is_not_found(
    server: DataBankServer, fetch: Fetch, folder: Path, file_id: str
) -> None:
    with pytest.raises(CorpusNotFound):
        fetch(file_id)

    assert server.requests == []
    assert not folder.exists()


def test_two_that_want_the_same_corpus_fetch_it_once(server: DataBankServer, fetch: Fetch) -> None:
    def slowly(request: Request) -> None:
        time.sleep(0.2)
        well(request)

    server.put(TEXT, "tale")
    server.always("GET", slowly)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert [path.read_bytes() for path in found] == [TEXT] * 3
    assert len(server.seen("GET")) == 1


def test_the_second_can_be_stopped_while_it_waits(
    server: DataBankServer, fetch: Fetch, folder: Path
) -> None:
    lock = corpus_cache.lock_path(folder, "tale")
    with locked(lock, should_stop=never), pytest.raises(StopRequested):
        fetch(should_stop=lambda: StopReason.CANCEL)

    assert server.requests == []


def test_each_use_of_a_corpus_is_remembered_and_its_age_is_kept(
    server: DataBankServer, fetch: Fetch
) -> None:
    server.put(TEXT, "tale")
    path = fetch()
    os.utime(path, (1_000, path.stat().st_mtime))
    modified = path.stat().st_mtime_ns

    fetch()

    assert time.time() - path.stat().st_atime < 60
    assert path.stat().st_mtime_ns == modified


def test_whole_and_partial_corpora_are_listed_and_nothing_else(folder: Path) -> None:
    assert corpus_cache.ids(folder) == []
    folder.mkdir()
    for name in ("a.txt", "a.txt.sha256", "b.txt.part", ".c.lock", "d.md", ".hidden.txt"):
        (folder / name).touch()

    assert corpus_cache.ids(folder) == ["a", "b"]
    assert [path.name for path in corpus_cache.files(folder, "a")] == ["a.txt", "a.txt.sha256"]
