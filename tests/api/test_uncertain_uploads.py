"""Uploads while the database goes away: a corpus that is recorded has its file."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection

from tests.api.conftest import ON_BOTH_DATABASES
from trainer_app.errors import Unavailable
from trainer_app.settings import Settings
from trainer_app.store.database import Database
from trainer_app.upload_folder import marked

TEXT = b"Once upon a time.\n"
SHA256 = hashlib.sha256(TEXT).hexdigest()
Write = Callable[[Database], AbstractContextManager[Connection]]

_write = Database.write


@contextmanager
def losing_the_answer(database: Database) -> Iterator[Connection]:
    """Commits, and loses the connection before it hears of that."""
    with _write(database) as connection:
        yield connection
    raise Unavailable("the connection was lost after COMMIT")


@contextmanager
def losing_the_commit(database: Database) -> Iterator[Connection]:
    """Loses the connection before the commit."""
    with _write(database) as connection:
        yield connection
        raise Unavailable("the connection was lost before COMMIT")


def away(_database: Database) -> NoReturn:
    """Does not answer at all."""
    raise Unavailable("the database is away")


def upload(client: FlaskClient, patch: pytest.MonkeyPatch, *writes: Write) -> int:
    """The status of an upload whose transactions go like this, and any more as ever."""
    left = iter(writes)

    def write(database: Database) -> AbstractContextManager[Connection]:
        return next(left, _write)(database)

    with patch.context() as patched:
        patched.setattr(Database, "write", write)
        return client.post("/corpora", data=TEXT, content_type="text/plain").status_code


def texts(settings: Settings) -> list[str]:
    """The digests of the texts that are there, and those of marked ones once more."""
    folder = settings.paths.uploads
    return [path.stem for path in folder.glob("*.txt")] + marked(folder)


def listed(client: FlaskClient) -> list[str]:
    return [one["file_id"] for one in client.get("/corpora").get_json()["data"]]


@ON_BOTH_DATABASES
def test_a_corpus_whose_commit_was_not_answered_keeps_its_file(
    client: FlaskClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upload(client, monkeypatch, losing_the_answer) == 503
    assert (listed(client), texts(settings)) == ([SHA256], [SHA256])


@ON_BOTH_DATABASES
def test_a_corpus_that_was_not_committed_leaves_no_file_and_no_row(
    client: FlaskClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upload(client, monkeypatch, losing_the_commit) == 503
    assert (listed(client), texts(settings)) == ([], [])


def test_a_file_of_which_the_database_cannot_be_asked_stays_and_is_recorded_by_a_repeat(
    client: FlaskClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upload(client, monkeypatch, losing_the_commit, away) == 503
    assert (listed(client), texts(settings)) == ([], [SHA256, SHA256])
    assert upload(client, monkeypatch) == 201
    assert (listed(client), texts(settings)) == ([SHA256], [SHA256])


def test_a_corpus_whose_mark_cannot_be_removed_is_uploaded_all_the_same(
    client: FlaskClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def fails(path: Path, *, missing_ok: bool = False) -> None:
        if path.suffix == ".unrecorded":
            raise OSError(errno.EIO, "broken")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", fails)
    assert upload(client, monkeypatch) == 201
    assert (listed(client), texts(settings)) == ([SHA256], [SHA256, SHA256])
