"""Brings a database to the newest schema, with the scripts that are installed beside the code."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from importlib.resources import files
from typing import Final

import psycopg
import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from trainer_app.errors import Unavailable
from trainer_app.store.database import Database

_WAIT_SECONDS: Final = 60.0  # for others that start at the same time and migrate first
# SQLite waits in C, where no signal is heard; PostgreSQL gives up a lock after 2 s as well.
_LOOK_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.05
_PRIMARY_CODE: Final = 0xFF  # of SQLite's codes: the rest says more exactly why
_LOCK: Final = 4_706_213_870  # a number that nothing else on the server locks

_log = structlog.get_logger(__name__)


def upgrade(url: str, *, give_up: Callable[[], bool] = lambda: False) -> bool:
    """Create or migrate the schema, all or nothing; several may start at once.

    The schema of a later version is left as it is: it keeps what the version before it needs, so
    that the two can work side by side. False then: any other that this code has never heard of is
    taken for one. Raises Unavailable as the database does, and when another
    holds it for a minute, or for as long as ``give_up``, which is asked every 2 s, is false; it
    names the variable, and never what that says.
    """
    database = Database(url, wait_seconds=_WAIT_SECONDS)
    if database.file is not None:  # the other one bounds a wait for a lock by itself
        database = Database(url, wait_seconds=_LOOK_SECONDS)
    give_up_at = time.monotonic() + _WAIT_SECONDS
    try:
        while True:
            try:
                return _upgrade(database)
            except Unavailable as error:
                if not _is_locked(error) or give_up() or time.monotonic() > give_up_at:
                    raise
            time.sleep(_PAUSE_SECONDS)
    except Unavailable as error:
        raise Unavailable(f"DATABASE__URL: {error.message}") from error
    finally:
        database.close()


def head_revision() -> str | None:
    """The schema that this code works with."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def current_revision(db: Database) -> str | None:
    """The schema that the database has; None: none yet. Raises Unavailable."""
    with db.read() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    return config


def _upgrade(database: Database) -> bool:
    if database.file is not None:
        _choose_the_write_ahead_log(str(database.file))
    # SQLite: the transaction is the lock. PostgreSQL: a lock of its own.
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        config = _config()
        config.attributes["connection"] = connection
        there = MigrationContext.configure(connection).get_current_revision()
        scripts = ScriptDirectory.from_config(config).walk_revisions()
        if there is None or there in {script.revision for script in scripts}:
            command.upgrade(config, "head")
            return True
        _log.warning("the database has the schema of a later version", revision=there)
        return False


def _is_locked(error: Unavailable) -> bool:
    """Whether another one holds the database, or a table of it."""
    cause = error.__cause__
    if isinstance(cause, DBAPIError):
        cause = cause.orig
    if isinstance(cause, sqlite3.OperationalError):
        return cause.sqlite_errorcode & _PRIMARY_CODE == sqlite3.SQLITE_BUSY
    return isinstance(cause, psycopg.errors.LockNotAvailable)


def _choose_the_write_ahead_log(path: str) -> None:
    """Readers do not wait for writers from now on: the file itself remembers it.

    SQLite's own waiting does not cover this switch, so that starters would fail now and then.
    """
    try:
        with closing(sqlite3.connect(path, timeout=0)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        raise Unavailable("the database is away or busy") from error
    except sqlite3.DatabaseError as error:
        raise Unavailable("its file is no database of SQLite, or is damaged") from error
