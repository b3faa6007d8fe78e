"""The schema, and how a database comes to it."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, inspect, text
from sqlalchemy.exc import IntegrityError

from trainer_app.errors import Unavailable
from trainer_app.store import migrate
from trainer_app.store.database import Database
from trainer_app.store.tables import Table

_ALEMBIC_INI = Path(__file__).parents[2] / "migrations" / "alembic.ini"


def test_the_migrated_schema_is_that_of_the_tables(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Table.metadata) == []


def test_the_migrated_checks_are_those_of_the_tables(database: Database) -> None:
    with database.read() as connection:
        inspector = inspect(connection)
        found = {
            (table, constraint["name"])
            for table in Table.metadata.tables
            for constraint in inspector.get_check_constraints(table)
        }
    declared = {
        (table.name, str(constraint.name))
        for table in Table.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    assert found == declared


def test_a_new_database_comes_to_the_newest_revision(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    with closing(Database(empty_url)) as database:
        assert migrate.current_revision(database) == migrate.head_revision() is not None


def test_the_schema_of_a_later_version_is_left_as_it_is(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    with closing(Database(empty_url)) as database:
        with database.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            connection.execute(text("ALTER TABLE jobs ADD COLUMN later VARCHAR(8)"))

        migrate.upgrade(empty_url)

        assert migrate.current_revision(database) == "9999"
        with database.read() as connection:
            names = {column["name"] for column in inspect(connection).get_columns("jobs")}
        assert "later" in names


def test_a_database_that_is_not_migrated_has_no_revision(empty_url: str) -> None:
    with closing(Database(empty_url)) as database:
        assert migrate.current_revision(database) is None


def test_upgrading_again_changes_nothing(database: Database, database_url: str) -> None:
    with database.write() as connection:
        connection.execute(text("DELETE FROM corpora"))
    migrate.upgrade(database_url)
    assert migrate.current_revision(database) == migrate.head_revision()


def test_several_that_start_at_once_all_find_the_newest_schema(empty_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    starters = [context.Process(target=migrate.upgrade, args=(empty_url,)) for _ in range(3)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(60)
    assert [starter.exitcode for starter in starters] == [0, 0, 0]


def test_what_a_migration_made_can_be_taken_back(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE__URL", empty_url)
    config = Config(_ALEMBIC_INI)
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    with closing(Database(empty_url)) as database, database.read() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]


def test_an_older_database_keeps_its_jobs_and_takes_the_new_kinds(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE__URL", empty_url)
    config = Config(_ALEMBIC_INI)
    columns = (
        "id, kind, status, user_id, queue, priority, spec, attempt, cancel_requested, crashes, "
        "retries, not_before, dispatches, message, created_at, run_id"
    )
    values = "'queued', 0, 'q', 0, '{}', 0, FALSE, 0, 0, 0, 0, '', 0"
    add = f"INSERT INTO jobs ({columns}) VALUES (:id, :kind, {values}, :run)"
    command.upgrade(config, "0002")
    with closing(Database(empty_url)) as database:
        with database.write() as connection:
            connection.execute(text(add), {"id": "a", "kind": "train", "run": None})
            connection.execute(text(add), {"id": "b", "kind": "generate", "run": "a"})
        migrate.upgrade(empty_url)
        with database.write() as connection:
            connection.execute(text(add), {"id": "c", "kind": "chat", "run": "a"})
        with pytest.raises(IntegrityError), database.write() as connection:
            connection.execute(text(add), {"id": "d", "kind": "dance", "run": "a"})
        command.downgrade(config, "0002")
        with database.read() as connection:
            assert connection.scalars(text("SELECT id FROM jobs ORDER BY id")).all() == ["a", "b"]


def test_the_switch_to_the_write_ahead_log_waits_for_others(tmp_path: Path) -> None:
    path = tmp_path / "trainer.db"
    with closing(sqlite3.connect(path, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(0.3, other.rollback).start()
        migrate.upgrade(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Somebody else migrates the database."""
    with closing(Database(url)) as other, other.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": migrate._LOCK})
        yield


def test_whoever_is_told_to_give_up_waits_no_longer_for_one_who_migrates(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    answers = iter([False, True])
    began = time.monotonic()
    with locked(empty_url), pytest.raises(Unavailable, match=r"^DATABASE__URL: the database is"):
        migrate.upgrade(empty_url, give_up=lambda: next(answers))

    assert next(answers, None) is None
    assert time.monotonic() - began < 15


def test_one_who_migrates_is_waited_for_until_the_time_is_over(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(empty_url)
    with ThreadPoolExecutor() as pool:
        with locked(empty_url):
            waiting = pool.submit(migrate.upgrade, empty_url)
            with pytest.raises(TimeoutError):
                waiting.result(3)
        assert waiting.result(30)
    monkeypatch.setattr(migrate, "_WAIT_SECONDS", 1.0)
    with locked(empty_url), pytest.raises(Unavailable):
        migrate.upgrade(empty_url)


def test_a_file_that_cannot_be_opened_is_an_unavailable_database(tmp_path: Path) -> None:
    (tmp_path / "trainer.db").mkdir()
    with pytest.raises(Unavailable):
        migrate.upgrade(f"sqlite:///{tmp_path / 'trainer.db'}")


@pytest.mark.parametrize("first", [b"no database" * 100, b"SQLite format 3\0" + bytes(5_000)])
def test_a_file_that_is_no_database_is_named_by_its_variable(tmp_path: Path, first: bytes) -> None:
    (tmp_path / "trainer.db").write_bytes(first)
    with pytest.raises(Unavailable) as caught:
        migrate.upgrade(f"sqlite:///{tmp_path / 'trainer.db'}")
    assert caught.value.message == (
        "DATABASE__URL: its file is no database of SQLite, or is damaged"
    )


def test_a_server_that_does_not_answer_is_named_by_its_variable_and_not_its_password() -> None:
    url = "postgresql://user:secret@127.0.0.1:1/none?password=secret"
    with pytest.raises(Unavailable, match=r"^DATABASE__URL: the database is away") as caught:
        migrate.upgrade(url)
    assert "secret" not in caught.value.message


def test_a_folder_that_cannot_be_made_is_an_unavailable_database(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="folder"):
        migrate.upgrade(f"sqlite:///{tmp_path / 'file' / 'trainer.db'}")
