"""The log of SQLite, when the stack stops."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from trainer_app.store import corpora
from trainer_app.store.database import Database
from trainer_app.store.write_ahead_log import WriteAheadLog

ADD = """
import os, sys
from trainer_app.store import corpora
from trainer_app.store.database import Database

corpora.add(Database(sys.argv[1]), "a" * 64, 1, 1)
os._exit(0)
"""


@pytest.fixture
def file(sqlite_url: str) -> Path:
    """One that a process has written to that ended without closing it."""
    subprocess.run([sys.executable, "-c", ADD, sqlite_url], check=True, timeout=60)
    return Path(sqlite_url.removeprefix("sqlite:///"))


@pytest.fixture
def log(file: Path) -> WriteAheadLog:
    assert beside(file).stat().st_size
    log = WriteAheadLog(f"sqlite:///{file}")
    log.remember()
    return log


def beside(file: Path) -> Path:
    return file.with_name(f"{file.name}-wal")


def test_a_database_that_nobody_uses_any_more_is_one_file(
    file: Path, log: WriteAheadLog, tmp_path: Path
) -> None:
    log.put_away()

    assert not beside(file).exists()
    copy = tmp_path / "copy.db"
    copy.write_bytes(file.read_bytes())
    with closing(Database(f"sqlite:///{copy}")) as database:
        assert [one.file_id for one in corpora.list_(database).items] == ["a" * 64]


@pytest.mark.parametrize("statement", ["BEGIN", "BEGIN IMMEDIATE"])
def test_one_that_others_use_is_not_waited_for(
    file: Path, log: WriteAheadLog, statement: str
) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute(statement)
        other.execute("SELECT * FROM corpora").fetchall()
        since = time.monotonic()
        log.put_away()
        assert time.monotonic() - since < 10
        other.rollback()
        assert other.execute("SELECT count(*) FROM corpora").fetchall() == [(1,)]


def test_the_log_is_not_put_into_another_file_in_its_place(
    file: Path, log: WriteAheadLog, migrated_sqlite: Path
) -> None:
    file.rename(file.with_name("aside.db"))
    restored = migrated_sqlite.read_bytes()
    file.write_bytes(restored)

    log.put_away()

    assert file.read_bytes() == restored
    assert beside(file).stat().st_size


@pytest.mark.parametrize("harm", ["away", "damaged", "folder"])
def test_one_that_cannot_be_used_is_no_error(file: Path, log: WriteAheadLog, harm: str) -> None:
    if harm == "damaged":
        with file.open("r+b") as opened:
            opened.write(b"no database " * 1_000)
    else:
        file.unlink()
    if harm == "folder":
        file.mkdir()

    log.put_away()

    assert file.exists() == (harm != "away")


def test_one_that_was_never_there_is_not_made(tmp_path: Path) -> None:
    log = WriteAheadLog(f"sqlite:///{tmp_path / 'none.db'}")
    log.put_away()
    log.remember()
    log.put_away()
    (tmp_path / "file").touch()
    below = WriteAheadLog(f"sqlite:///{tmp_path / 'file' / 'none.db'}")
    below.remember()
    below.put_away()

    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".db"] == []


def test_postgresql_has_no_such_file() -> None:
    log = WriteAheadLog("postgresql://nobody@127.0.0.1:1/none")
    log.remember()
    log.put_away()
