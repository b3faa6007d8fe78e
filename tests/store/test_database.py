"""The database under all that can befall it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from tests.conftest import PostgresServer
from trainer_app.errors import SettingsError, Unavailable
from trainer_app.store import corpora, migrate
from trainer_app.store.database import NOW, Database


@contextmanager
def _unavailable(*, within: float) -> Iterator[None]:
    since = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        yield
    assert time.monotonic() - since < within
    assert caught.value.__cause__ is not None


def _setting(database: Database, statement: str) -> object:
    with database.read() as connection:
        return connection.scalar(text(statement))


def _python(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments])


def test_a_database_that_answers_is_available(database: Database) -> None:
    database.ping()


def test_the_clock_is_the_databases_in_unix_seconds(database: Database) -> None:
    with database.read() as connection:
        now = connection.scalar(select(NOW))
    assert now is not None
    assert abs(now - time.time()) < 5


def test_the_clock_goes_on_within_a_transaction(database: Database) -> None:
    with database.read() as connection:
        first = connection.scalar(select(NOW))
        time.sleep(0.01)
        second = connection.scalar(select(NOW))
    assert first is not None
    assert second is not None
    assert 0.005 < second - first < 5


def test_a_transaction_that_fails_writes_nothing(database: Database) -> None:
    def fail_half_way() -> None:
        with database.write() as connection:
            connection.execute(text("INSERT INTO corpora VALUES (:id, 1, 1, 1)"), {"id": "a" * 64})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert corpora.list_(database).items == []


def test_a_wrong_statement_is_not_blamed_on_the_database(database: Database) -> None:
    with pytest.raises(DBAPIError, match="nonsense"), database.read() as connection:
        connection.execute(text("SELECT nonsense FROM jobs"))


def test_a_database_without_its_tables_is_away(database: Database) -> None:
    with pytest.raises(Unavailable), database.read() as connection:
        connection.execute(text("SELECT * FROM tables_that_are_restored_later"))


def test_a_file_that_is_moved_away_is_neither_written_to_nor_made_anew(sqlite_url: str) -> None:
    with closing(Database(sqlite_url)) as database:
        path = database.file
        assert path is not None
        migrate.upgrade(sqlite_url)
        database.ping()
        aside = path.with_suffix(".aside")
        path.rename(aside)
        with pytest.raises(Unavailable), database.write() as connection:
            connection.execute(text("DELETE FROM jobs"))
        assert not path.exists()
        aside.rename(path)
        assert corpora.list_(database).items == []


def test_a_file_that_another_has_taken_the_place_of_is_left_alone(
    sqlite_url: str, tmp_path: Path
) -> None:
    restored = f"sqlite:///{tmp_path / 'restored.db'}"
    for url in (sqlite_url, restored):
        migrate.upgrade(url)
    with closing(Database(restored)) as other:
        corpora.add(other, "a" * 64, 1, 1)
    with closing(Database(sqlite_url)) as database:
        corpora.add(database, "b" * 64, 1, 1)  # in the log beside the file, not yet in it
        assert database.file is not None
        database.file.rename(tmp_path / "aside.db")
        (tmp_path / "restored.db").replace(database.file)
        with pytest.raises(Unavailable):
            corpora.list_(database)
        database.file.replace(tmp_path / "restored.db")
        (tmp_path / "aside.db").rename(database.file)
        assert [one.file_id for one in corpora.list_(database).items] == ["b" * 64]
    with closing(Database(restored)) as other:
        assert [one.file_id for one in corpora.list_(other).items] == ["a" * 64]


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "trainer.db"
    with closing(Database(f"sqlite:///{path}")) as database, pytest.raises(Unavailable):
        database.ping()
    assert not path.exists()


def test_a_value_that_does_not_fit_is_not_blamed_on_the_database(database: Database) -> None:
    with pytest.raises(DBAPIError, match="ck_corpora_digest"):
        corpora.add(database, "short", 1, 1)


def test_a_closed_database_opens_again(database: Database) -> None:
    database.ping()
    database.close()
    database.close()
    database.ping()


def test_the_old_name_of_postgresql_is_taken(postgres_url: str) -> None:
    old = postgres_url.replace("postgresql://", "postgres://")
    with closing(Database(old)) as database:
        database.ping()


@pytest.mark.parametrize(
    "url", ["", "trainer.db", "mysql://localhost/trainer", "sqlite://", "sqlite:///:memory:"]
)
def test_a_url_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^DATABASE__URL: "):
        Database(url)


def test_sqlite_is_set_up_to_keep_what_it_accepted(sqlite_database: Database) -> None:
    assert _setting(sqlite_database, "PRAGMA journal_mode") == "wal"
    assert _setting(sqlite_database, "PRAGMA synchronous") == 2  # FULL
    assert _setting(sqlite_database, "PRAGMA foreign_keys") == 1
    assert _setting(sqlite_database, "PRAGMA busy_timeout") == 10_000


def test_postgresql_is_set_up_so_that_nobody_waits_for_ever(postgres_url: str) -> None:
    own_options = f"{postgres_url}&options=-c%20work_mem%3D5MB"
    with closing(Database(own_options, wait_seconds=7)) as database:
        assert _setting(database, "SHOW lock_timeout") == "2s"
        assert _setting(database, "SHOW idle_in_transaction_session_timeout") == "15s"
        assert _setting(database, "SHOW statement_timeout") == "7s"
        assert _setting(database, "SHOW work_mem") == "5MB"


def test_readers_of_sqlite_do_not_wait_for_a_writer(sqlite_url: str) -> None:
    with (
        closing(Database(sqlite_url, wait_seconds=0.1)) as database,
        database.write() as connection,
    ):
        connection.execute(text("INSERT INTO corpora VALUES (:id, 1, 1, 1)"), {"id": "a" * 64})
        assert corpora.list_(database).items == []


def test_a_locked_sqlite_file_is_an_unavailable_database(sqlite_url: str) -> None:
    with (
        closing(Database(sqlite_url, wait_seconds=0.2)) as database,
        closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with _unavailable(within=3):
            corpora.add(database, "a" * 64, 1, 1)
        database.ping()
        with _unavailable(within=3):
            database.ping(to_write=True)
        other.rollback()
        database.ping(to_write=True)
        corpora.add(database, "a" * 64, 1, 1)


def test_a_locked_row_of_postgresql_is_an_unavailable_database(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        corpora.add(database, "a" * 64, 1, 1)
        with database.write() as connection:
            connection.execute(text("SELECT * FROM corpora FOR UPDATE"))
            with _unavailable(within=5):
                corpora.delete(database, "a" * 64)


def test_a_locked_table_of_jobs_is_an_unavailable_database(postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        with database.write() as connection:
            connection.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
            with _unavailable(within=5):
                database.ping()
        database.ping()


def test_a_full_disk_is_an_unavailable_database(sqlite_database: Database) -> None:
    with _unavailable(within=3), sqlite_database.write() as connection:
        connection.execute(text("PRAGMA max_page_count = 1"))  # no page more than there are
        connection.execute(text("CREATE TABLE big (x)"))
        connection.execute(text("INSERT INTO big VALUES (zeroblob(1000000))"))


def test_a_file_that_is_not_a_database_is_an_unavailable_one(tmp_path: Path) -> None:
    (tmp_path / "trainer.db").write_bytes(b"no database " * 1_000)
    with (
        closing(Database(f"sqlite:///{tmp_path / 'trainer.db'}")) as database,
        _unavailable(within=3),
    ):
        database.ping()


def test_a_folder_is_an_unavailable_database(tmp_path: Path) -> None:
    with closing(Database(f"sqlite:///{tmp_path}")) as database, _unavailable(within=3):
        database.ping()


def test_a_folder_that_cannot_be_made_is_an_unavailable_database(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    url = f"sqlite:///{tmp_path / 'file' / 'folder' / 'trainer.db'}"
    with closing(Database(url)) as database, _unavailable(within=3):
        database.ping()


def test_a_connection_that_does_not_come_free_is_an_unavailable_database(
    database_url: str,
) -> None:
    with closing(Database(database_url, wait_seconds=0.2)) as database, ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(database.read()).scalar(select(1))
        with _unavailable(within=3):
            database.ping()


def test_a_postgresql_that_stops_is_unavailable_until_it_is_back(
    own_postgres: PostgresServer,
) -> None:
    migrate.upgrade(own_postgres.uri)
    with closing(Database(own_postgres.uri)) as database:
        corpora.add(database, "a" * 64, 1, 1)
        own_postgres.stop()
        for _ in range(2):
            with _unavailable(within=5):
                corpora.add(database, "b" * 64, 1, 1)
        own_postgres.start()
        corpora.add(database, "c" * 64, 1, 1)
        own_postgres.stop()
        own_postgres.start()  # a restart that nobody noticed breaks nothing
        assert [corpus.file_id for corpus in corpora.list_(database).items] == ["c" * 64, "a" * 64]


def test_a_postgresql_that_is_frozen_is_unavailable_until_it_goes_on(
    own_postgres: PostgresServer,
) -> None:
    migrate.upgrade(own_postgres.uri)
    with closing(Database(own_postgres.uri, wait_seconds=3)) as database:
        corpora.add(database, "a" * 64, 1, 1)
        with own_postgres.frozen():
            for _ in range(2):  # with a connection that stood, and without
                with _unavailable(within=5):
                    corpora.add(database, "b" * 64, 1, 1)
        corpora.add(database, "c" * 64, 1, 1)
        found = {corpus.file_id for corpus in corpora.list_(database).items}
    assert {"a" * 64, "c" * 64} <= found


def test_a_postgresql_that_freezes_within_a_transaction_is_noticed_and_not_waited_for_again(
    own_postgres: PostgresServer,
) -> None:
    with (
        closing(Database(own_postgres.uri, wait_seconds=2)) as database,
        ExitStack() as stack,
        _unavailable(within=5),
        database.read() as session,
    ):
        session.scalar(select(1))
        stack.enter_context(own_postgres.frozen())
        session.scalar(select(1))


def test_a_statement_that_takes_its_time_is_not_taken_for_a_frozen_server(
    own_postgres: PostgresServer,
) -> None:
    with closing(Database(own_postgres.uri, wait_seconds=4)) as database:
        with database.read() as session:
            session.scalar(select(func.pg_sleep(2)))  # longer than a ping may
        with _unavailable(within=6), database.read() as session:
            session.scalar(select(func.pg_sleep(20)))
        with database.read() as session:
            assert session.scalar(select(1)) == 1


def test_a_host_that_nobody_answers_is_an_unavailable_database() -> None:
    with (
        closing(Database("postgresql://user:secret@127.0.0.1:1/trainer")) as database,
        pytest.raises(Unavailable) as caught,
    ):
        database.ping()
    assert "127.0.0.1" not in caught.value.message


def test_a_forked_child_leaves_its_parents_connections_alone(database_url: str) -> None:
    script = """
import os, sys
from trainer_app.store import corpora
from trainer_app.store.database import Database

database = Database(sys.argv[1])
corpora.add(database, "a" * 64, 1, 1)
child = os.fork()
if child == 0:
    corpora.add(database, "b" * 64, 1, 1)
    database.close()
    sys.exit(0)  # with all finalizers
assert os.waitpid(child, 0)[1] == 0
corpora.add(database, "c" * 64, 1, 1)
assert len(corpora.list_(database).items) == 3
database.close()
"""
    assert _python(script, database_url).wait(60) == 0


def test_a_forked_child_has_connections_of_its_own(postgres_url: str) -> None:
    script = """
import os, sys
from sqlalchemy import text
from trainer_app.store.database import Database

def backend():
    with database.read() as connection:
        return connection.scalar(text("SELECT pg_backend_pid()"))

database = Database(sys.argv[1])
mine = backend()
child = os.fork()
if child == 0:
    other = backend() != mine
    database.close()
    sys.exit(0 if other else 1)
assert os.waitpid(child, 0)[1] == 0
assert backend() == mine
database.close()
"""
    assert _python(script, postgres_url).wait(60) == 0


def test_who_reads_before_writing_is_not_overtaken(sqlite_database: Database) -> None:
    with ThreadPoolExecutor(1) as pool:
        with sqlite_database.write() as connection:
            connection.scalar(text("SELECT count(*) FROM corpora"))
            other = pool.submit(corpora.add, sqlite_database, "b" * 64, 1, 1)
            wait([other], timeout=0.2)
            connection.execute(text("INSERT INTO corpora VALUES (:id, 1, 1, 1)"), {"id": "a" * 64})
        other.result(10)
    assert len(corpora.list_(sqlite_database).items) == 2


def test_four_processes_that_write_at_once_all_get_through(database_url: str) -> None:
    script = """
import sys
from trainer_app.store import corpora
from trainer_app.store.database import Database

database = Database(sys.argv[1])
for number in range(50):
    corpora.add(database, f"{sys.argv[2]}{number:063}", 1, 1)
database.close()
"""
    writers = [_python(script, database_url, str(writer)) for writer in range(4)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    with closing(Database(database_url)) as database:
        assert len(corpora.list_(database, limit=1_000).items) == 200
