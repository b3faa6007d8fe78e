"""A database that nobody can write to for a while: it says so, and is used again by itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from tests.conftest import PostgresServer
from tests.read_only import read_only
from trainer_app.errors import Unavailable
from trainer_app.store import corpora, migrate
from trainer_app.store.database import Database

NO_RIGHT = r"^the database's user lacks a right to its tables, which GRANT gives$"


def _add(database: Database, letter: str) -> None:
    corpora.add(database, letter * 64, 1, 1)


def _sessions(database: Database) -> set[object]:
    """Three of the pool's, by their processes in the server."""
    pid = text("SELECT pg_backend_pid()")
    with database.read() as one, database.read() as two, database.read() as three:
        return {connection.scalar(pid) for connection in (one, two, three)}


def _write_as_a_reader(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        connection.execute(text("DELETE FROM jobs"))


def _write_four_times(database: Database) -> None:
    for letter in "cdef":
        _add(database, letter)


def _owner_may_write(file: Path, _mode: int) -> bool:
    return bool(file.stat().st_mode & stat.S_IWUSR)


def _refused(database: Database, letter: str) -> None:
    with pytest.raises(Unavailable, match=r"^the database cannot be written to$"):
        _add(database, letter)


@pytest.fixture
def file(sqlite_url: str) -> Path:
    """The file of a migrated SQLite database."""
    return Path(sqlite_url.removeprefix("sqlite:///"))


def test_a_process_that_first_meets_sqlite_while_it_is_read_only_writes_afterwards(
    sqlite_url: str, file: Path
) -> None:
    with closing(Database(sqlite_url)) as database:
        with read_only(file):
            assert corpora.list_(database).items == []
            for to_write in (False, True):
                with pytest.raises(Unavailable, match="cannot be written to"):
                    database.ping(to_write=to_write)
            assert corpora.list_(database).items == []
        _add(database, "a")
        database.ping()
        database.ping(to_write=True)


def test_what_sqlite_refused_to_write_is_taken_afterwards(sqlite_url: str, file: Path) -> None:
    with closing(Database(sqlite_url)) as reader, closing(Database(sqlite_url)) as database:
        _add(reader, "b")
        with read_only(file):
            for letter in "aaa":
                _refused(database, letter)
            with database.read(), database.read():
                _refused(database, "a")
        _add(database, "a")
        assert len(corpora.list_(reader).items) == 2


def test_a_log_of_sqlite_that_was_left_read_only_is_written_to_by_those_that_come_later(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(file)
    beside = [file.with_name(f"{file.name}-{what}") for what in ("wal", "shm")]
    file.chmod(0o640)
    for one in beside:
        one.touch()
        one.chmod(0o440)
    if os.geteuid() == 0:  # it may write to all of them
        monkeypatch.setattr(os, "access", _owner_may_write)
    with closing(Database(f"sqlite:///{link}")) as database:
        database.ping()
        _add(database, "a")
        assert [one.stat().st_mode & 0o777 for one in beside] == [0o640, 0o640]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to all files")
def test_refusals_of_sqlite_leave_nothing_behind_that_only_reads(
    sqlite_url: str, file: Path
) -> None:
    with closing(Database(sqlite_url)) as database:
        with read_only(file):
            assert corpora.list_(database).items == []
            with database.read():
                file.chmod(0o644)  # what SQLite has in this process of the log is read-only still
                _refused(database, "a")
        with suppress(Unavailable):
            _add(database, "a")
        _write_four_times(database)


def test_connections_of_sqlite_that_only_read_unnoticed_are_all_left_at_the_first_refusal(
    sqlite_url: str,
) -> None:
    with closing(Database(sqlite_url)) as database:
        with database.read() as one, database.read() as two, database.read() as three:
            for connection in (one, two, three):
                connection.execute(text("PRAGMA query_only = ON"))
        database.ping()
        with pytest.raises(Unavailable, match="cannot be written to"):
            database.ping(to_write=True)
        _write_four_times(database)


def test_a_lock_of_sqlite_is_no_matter_of_a_ping(sqlite_url: str) -> None:
    with closing(Database(sqlite_url, wait_seconds=30)) as database, database.write():
        database.ping()


@pytest.fixture
def name(bare_postgres_url: str) -> str:
    """A migrated database of PostgreSQL, by its name."""
    migrate.upgrade(bare_postgres_url)
    with psycopg.connect(bare_postgres_url) as connection:
        return connection.info.dbname


def test_a_postgresql_that_is_read_only_for_a_while_is_written_to_afterwards(
    postgres: PostgresServer, bare_postgres_url: str, name: str
) -> None:
    with closing(Database(bare_postgres_url)) as database:
        _add(database, "a")
        with postgres.default_read_only(name):
            for to_write in (False, True):
                with pytest.raises(Unavailable, match="cannot be written to"):
                    database.ping(to_write=to_write)
            _refused(database, "b")
            with database.read(), database.read(), database.read():
                assert len(corpora.list_(database).items) == 1
        _add(database, "b")
        database.ping()
        database.ping(to_write=True)


@pytest.fixture
def reader_url(postgres: PostgresServer, bare_postgres_url: str, name: str) -> Iterator[str]:
    """The same database, for a user who may read all of its tables."""
    role = f"reader_of_{name}"
    postgres.execute(f"CREATE ROLE {role} LOGIN")
    _execute(bare_postgres_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    yield bare_postgres_url.replace("//postgres:@", f"//{role}:@")
    _execute(bare_postgres_url, f"DROP OWNED BY {role}")
    postgres.execute(f"DROP ROLE {role}")


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def test_a_user_of_postgresql_who_may_only_read_writes_once_that_is_granted(
    bare_postgres_url: str, name: str, reader_url: str
) -> None:
    role = f"reader_of_{name}"
    with closing(Database(reader_url)) as database:
        before = _sessions(database)
        for to_write in (False, True):
            with pytest.raises(Unavailable, match=NO_RIGHT):
                database.ping(to_write=to_write)
        with pytest.raises(Unavailable, match=NO_RIGHT):
            _add(database, "a")
        assert corpora.list_(database).items == []
        _execute(bare_postgres_url, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        _add(database, "a")
        database.ping()
        database.ping(to_write=True)
        assert _sessions(database) == before


def test_a_user_of_postgresql_who_may_not_even_read_is_refused(
    bare_postgres_url: str, name: str, reader_url: str
) -> None:
    role = f"reader_of_{name}"
    _execute(bare_postgres_url, f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}")
    with closing(Database(reader_url)) as database:
        with pytest.raises(Unavailable, match=NO_RIGHT):
            _add(database, "a")
        with pytest.raises(Unavailable, match=NO_RIGHT):
            database.ping()
        with pytest.raises(Unavailable, match=NO_RIGHT):
            corpora.list_(database)


def test_sessions_of_postgresql_are_all_left_at_the_first_refusal(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        before = _sessions(database)
        with pytest.raises(Unavailable, match="cannot be written to"):
            _write_as_a_reader(database)
        assert not before & _sessions(database)
        _write_four_times(database)


def test_what_postgresql_refuses_at_the_end_of_a_transaction_is_refused_alike(
    postgres_url: str,
) -> None:
    def write_too_late(database: Database) -> None:
        with database.write() as connection:
            connection.execute(
                text("""
                    CREATE TEMP TABLE late (n int);
                    CREATE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql
                        AS 'BEGIN RAISE read_only_sql_transaction; END';
                    CREATE CONSTRAINT TRIGGER late AFTER INSERT ON late DEFERRABLE
                        INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_temp.refuse();
                    INSERT INTO late VALUES (1);
                """)
            )

    with closing(Database(postgres_url)) as database:
        with pytest.raises(Unavailable, match=r"^the database cannot be written to$"):
            write_too_late(database)
        _write_four_times(database)


def test_a_session_of_postgresql_that_only_reads_is_left_by_a_ping(postgres_url: str) -> None:
    url = f"{postgres_url}&options=-c%20default_transaction_read_only%3Don"
    with (
        closing(Database(url)) as database,
        pytest.raises(Unavailable, match="cannot be written to"),
    ):
        database.ping()
