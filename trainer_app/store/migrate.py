"""Brings a database to the newest schema, with the scripts that are installed beside the code."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from importlib.resources import files
from typing import Final

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from trainer_app.errors import Unavailable
from trainer_app.store.database import Database

_WAIT_SECONDS: Final = 60.0  # for others that start at the same time and migrate first
_LOCK: Final = 4_706_213_870  # a number that nothing else on the server locks

_log = structlog.get_logger(__name__)


def upgrade(url: str) -> bool:
    """Create or migrate the schema, all or nothing; several may start at once.

    The schema of a later version is left as it is: it keeps what the version before it needs, so
    that the two can work side by side. False then: any other that this code has never heard of is
    taken for one. Raises Unavailable as the database does, and when another
    holds it for a minute; it names the variable, and never what that says.
    """
    database = Database(url, wait_seconds=_WAIT_SECONDS)
    try:
        if database.file is not None:
            _choose_the_write_ahead_log(str(database.file))
        # SQLite: the transaction is the lock. PostgreSQL: a lock of its own.
        with database.write() as connection:
            if connection.dialect.name == "postgresql":
                _wait_for_the_others(connection)
            config = _config()
            config.attributes["connection"] = connection
            there = MigrationContext.configure(connection).get_current_revision()
            scripts = ScriptDirectory.from_config(config).walk_revisions()
            if there is None or there in {script.revision for script in scripts}:
                command.upgrade(config, "head")
                return True
            _log.warning("the database has the schema of a later version", revision=there)
            return False
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


def _wait_for_the_others(connection: Connection) -> None:
    milliseconds = round(_WAIT_SECONDS * 1_000)
    connection.execute(text(f"SET LOCAL lock_timeout = {milliseconds}"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


def _choose_the_write_ahead_log(path: str) -> None:
    """Readers do not wait for writers from now on: the file itself remembers it.

    SQLite's own waiting does not cover this switch, so that starters would fail now and then.
    """
    give_up_at = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            with closing(sqlite3.connect(path, timeout=0)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise Unavailable("the database is away or busy") from error
            time.sleep(0.05)
        else:
            return
