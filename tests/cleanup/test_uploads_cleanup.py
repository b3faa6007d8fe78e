"""What uploads that were cut off have left: parts of texts, and texts without a row."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from trainer_app.cleanup.report import Item
from trainer_app.cleanup.uploads import clean_uploads
from trainer_app.errors import Unavailable
from trainer_app.store import corpora
from trainer_app.store.database import Database
from trainer_app.upload_folder import corpus_path, exclusive, mark_path

SHA256 = "a" * 64
OTHER = "b" * 64
TEXT = b"Once upon a time.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "uploads"
    made.mkdir()
    return made


@pytest.fixture
def short(sqlite_url: str) -> Iterator[Database]:
    """A database that is waited for but briefly."""
    with closing(Database(sqlite_url, wait_seconds=0.1)) as database:
        yield database


def put(folder: Path, sha256: str = SHA256, *, marked_ago: float | None = 601) -> None:
    """A text, with the mark that an upload made so many seconds ago and left."""
    path, then = corpus_path(folder, sha256), time.time() - 7_200
    path.write_bytes(TEXT)
    os.utime(path, (then, then))
    if marked_ago is not None:
        mark(folder, sha256, marked_ago)


def mark(folder: Path, sha256: str, ago: float) -> None:
    path, then = mark_path(folder, sha256), time.time() - ago
    path.touch()
    os.utime(path, (then, then))


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_text_whose_upload_was_cut_off_before_its_row_goes(
    database: Database, folder: Path
) -> None:
    put(folder)
    item = Item(name=f"{SHA256}.txt", bytes=len(TEXT), reason="it was never recorded")
    assert clean_uploads(database, folder).removed == (item,)
    assert left(folder) == []
    assert corpora.list_(database).items == []
    assert clean_uploads(database, folder).removed == ()


def test_a_text_that_is_recorded_stays_and_loses_its_mark(database: Database, folder: Path) -> None:
    put(folder)
    recorded = corpora.add(database, SHA256, len(TEXT), 1)
    assert clean_uploads(database, folder).removed == ()
    assert left(folder) == [f"{SHA256}.txt"]
    assert corpora.list_(database).items == [recorded]


def test_a_text_that_no_upload_has_marked_stays_as_after_the_restore_of_a_database(
    sqlite_database: Database, folder: Path
) -> None:
    put(folder, marked_ago=None)
    assert clean_uploads(sqlite_database, folder).removed == ()
    assert left(folder) == [f"{SHA256}.txt"]


def test_a_text_that_was_uploaded_within_ten_minutes_stays(
    sqlite_database: Database, folder: Path
) -> None:
    put(folder, marked_ago=590)
    before = left(folder)
    assert clean_uploads(sqlite_database, folder).removed == ()
    assert left(folder) == before


def test_a_mark_whose_text_is_not_there_goes(sqlite_database: Database, folder: Path) -> None:
    mark(folder, SHA256, 601)
    assert clean_uploads(sqlite_database, folder).removed == ()
    assert left(folder) == []


def test_an_upload_that_has_its_turn_is_neither_disturbed_nor_waited_for(
    sqlite_database: Database, folder: Path
) -> None:
    put(folder)
    before = left(folder)
    with exclusive(folder):
        assert clean_uploads(sqlite_database, folder).removed == ()
    assert left(folder) == before
    assert [item.name for item in clean_uploads(sqlite_database, folder).removed] == [
        f"{SHA256}.txt"
    ]


def test_nothing_goes_while_nobody_can_write_to_the_database(short: Database, folder: Path) -> None:
    put(folder)
    before = left(folder)
    with closing(sqlite3.connect(str(short.file), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            clean_uploads(short, folder)
    assert left(folder) == before
    assert len(clean_uploads(short, folder).removed) == 1


def test_parts_that_nobody_writes_go_and_a_folder_that_is_not_there_is_not_made(
    sqlite_database: Database, folder: Path
) -> None:
    put(folder, OTHER, marked_ago=None)
    (folder / ".locked-upload.1.tmp").write_bytes(b"half")
    item = Item(name=".locked-upload.1.tmp", bytes=4, reason="its upload was cut off")
    assert clean_uploads(sqlite_database, folder).removed == (item,)
    assert left(folder) == [f"{OTHER}.txt"]
    assert clean_uploads(sqlite_database, folder / "missing").removed == ()
    assert not (folder / "missing").exists()


def test_a_mark_that_goes_while_it_is_looked_at_counts_as_none(
    sqlite_database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer_app.cleanup.uploads.marked", lambda _folder: [SHA256])
    assert clean_uploads(sqlite_database, folder).removed == ()
