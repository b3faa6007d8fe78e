"""The SQL database: SQLite on a local disk or PostgreSQL, the same to all that use it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psycopg
from sqlalchemy import (
    URL,
    Connection,
    Double,
    Engine,
    create_engine,
    event,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from trainer_app.errors import SettingsError, Unavailable
from trainer_app.store.postgresql import postgresql_engine


class Now(FunctionElement[float]):
    """The database's clock, in unix seconds: the only clock that leases are measured with."""

    type = Double()
    inherit_cache = True


@compiles(Now, "sqlite")
def _now_of_sqlite(_element: Now, _compiler: SQLCompiler, **_options: object) -> str:
    # unixepoch('subsec') needs SQLite 3.42.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(Now, "postgresql")
def _now_of_postgresql(_element: Now, _compiler: SQLCompiler, **_options: object) -> str:
    # now() would be the time at which the transaction began, before it waited for a lock.
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


NOW: Final = Now()

_ONLY_READ: Final = "the database cannot be written to"
_NO_RIGHT: Final = "the database's user lacks a right to its tables, which GRANT gives"
# Of a session and a user of PostgreSQL: whether it only reads, and whether it may add jobs. The
# jobs are looked at as well: one who has locked their table lets nobody do so, and the wait for
# that lock is bounded, as each is.
_RIGHTS: Final = text(
    "SELECT current_setting('transaction_read_only') = 'on', has_table_privilege('jobs', 'INSERT'),"
    " (SELECT 1 FROM jobs LIMIT 1)"
)
_PRIMARY_CODE: Final = 0xFF  # the bits of an error's code in which SQLite's extended ones agree
_MAY_ONLY_READ: Final = "may only read"  # what the pool's record of a connection may say of it


class Database:
    """Connections to one database, made when first used, in each process anew.

    ``wait_seconds`` bounds each wait: for a lock of SQLite, a free connection, a statement of
    PostgreSQL.
    """

    def __init__(self, url: str, *, wait_seconds: float = 10.0) -> None:
        """Raises SettingsError on a URL that names no database that can be used."""
        self._url = _parse(url)
        self._wait_seconds = wait_seconds
        # A forked child must neither use nor close its parent's connections: it makes an engine
        # of its own, and the parent's stays referenced here, so that no finalizer closes it.
        self._engines: dict[int, Engine] = {}

    @property
    def file(self) -> Path | None:
        """The file of SQLite, in a folder that exists; None: PostgreSQL.

        Raises Unavailable when the folder cannot be made.
        """
        path = self._path
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Unavailable("the database's folder cannot be made") from error
        return path

    @property
    def _path(self) -> Path | None:
        if self._url.get_backend_name() != "sqlite":
            return None
        return Path(str(self._url.database)).absolute()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that holds the right to write from its first statement on.

        Raises Unavailable when the database is away, locked for too long, or its disk is full.
        """
        with self._transaction(immediate=True) as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that writes nothing. Raises Unavailable as ``write`` does."""
        with self._transaction(immediate=False) as connection:
            yield connection

    def ping(self, *, to_write: bool = False) -> None:
        """Raises Unavailable unless the database answers, has its tables and may be written to.

        ``to_write``: also where SQLite lets nobody write within ``wait_seconds``. Without it,
        nobody is waited for, and nobody has to wait.
        """
        with self._transaction(immediate=to_write) as connection:
            connection.scalar(text("SELECT version_num FROM alembic_version"))
            if self._path is None:
                reads, adds, _ = connection.execute(_RIGHTS).one()
                if reads:
                    connection.invalidate()  # its session keeps that, whatever is set meanwhile
                    raise Unavailable(_ONLY_READ)
                if not adds:
                    raise Unavailable(_NO_RIGHT)
            elif not _may_be_written(self._path):
                raise Unavailable(_ONLY_READ)
            elif to_write:
                # Of no row. BEGIN IMMEDIATE alone makes a reader of who may only read.
                connection.execute(text("UPDATE alembic_version SET version_num = '' WHERE 1 = 0"))

    def now(self) -> float:
        """What its clock says, in unix seconds. Raises Unavailable as ``read`` does."""
        with self.read() as connection:
            return connection.execute(select(NOW)).scalar_one()

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones."""
        engine = self._engines.pop(os.getpid(), None)
        if engine is not None:
            engine.dispose()

    @contextmanager
    def _transaction(self, *, immediate: bool) -> Iterator[Connection]:
        try:
            with self._engine().connect() as connection:
                connection.execution_options(immediate=immediate)
                with connection.begin():
                    yield connection
        except (DBAPIError, PoolTimeout) as error:
            if _is_fault_of_the_statement(error):
                raise
            # The driver's words name hosts, users and files: they are for the log, as the cause.
            raise Unavailable(_condition(error)) from error

    def _engine(self) -> Engine:
        engine = self._engines.get(os.getpid())
        if engine is None:
            # setdefault is atomic: threads that come first together agree on one engine.
            engine = self._engines.setdefault(os.getpid(), self._connect())
        return engine

    def _connect(self) -> Engine:
        if self.file is not None:
            engine = _sqlite_engine(self._url, self._wait_seconds)
        else:
            engine = postgresql_engine(self._url, self._wait_seconds)
        event.listen(engine, "handle_error", _leave_what_may_only_read)
        return engine


def _leave_what_may_only_read(context: ExceptionContext) -> None:
    # Whether it may write is settled when a connection is made, for good: the whole pool is left,
    # for connections that are made once the database can be written to again.
    if _refuses_to_write(context.original_exception):
        context.is_disconnect = True
        # SQLite holds a connection open for as long as a cursor that the error's traceback keeps,
        # and whatever a process opens meanwhile has its index of the log, which is read-only.
        if context.execution_context is not None:
            context.execution_context.cursor.close()


def _is_fault_of_the_statement(error: DBAPIError | PoolTimeout) -> bool:
    """Whether a statement of ours, or its values, are to blame, not the database's condition."""
    if _lacks_tables(error) or _lacks_rights(error):
        return False
    if isinstance(error, DataError | IntegrityError | NotSupportedError | ProgrammingError):
        return True
    # SQLite has one code for all that is wrong with a statement, and an exception that it shares
    # with a locked file and a full disk.
    return _sqlite_code(error) == sqlite3.SQLITE_ERROR


def _lacks_tables(error: DBAPIError | PoolTimeout) -> bool:
    """Nobody has made them, something else has taken the database's place, or it is restored."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(cause, psycopg.errors.UndefinedTable):
        return True
    return _sqlite_code(error) == sqlite3.SQLITE_ERROR and str(cause).startswith("no such table")


def _lacks_rights(error: DBAPIError | PoolTimeout) -> bool:
    """PostgreSQL's user may not do that, until somebody grants it: each statement asks anew."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    return isinstance(cause, psycopg.errors.InsufficientPrivilege)


def _sqlite_code(error: DBAPIError | PoolTimeout) -> int | None:
    cause = error.orig if isinstance(error, DBAPIError) else None
    return cause.sqlite_errorcode if isinstance(cause, sqlite3.OperationalError) else None


def _refuses_to_write(error: BaseException | None) -> bool:
    """It can be read alone: its disk, its file, its server or this connection."""
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode & _PRIMARY_CODE == sqlite3.SQLITE_READONLY
    return isinstance(error, psycopg.errors.ReadOnlySqlTransaction)


def _condition(error: DBAPIError | PoolTimeout) -> str:
    if _lacks_tables(error) or _sqlite_code(error) == sqlite3.SQLITE_CANTOPEN:
        return "the database is not there, or has no tables yet: `trainer db upgrade` makes them"
    if _lacks_rights(error):
        return _NO_RIGHT
    if _refuses_to_write(error.orig if isinstance(error, DBAPIError) else None):
        return _ONLY_READ
    return "the database is away or busy"


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SettingsError("DATABASE__URL: is not a database URL") from error
    backend = parsed.drivername.partition("+")[0]
    if backend in {"postgres", "postgresql"}:
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and parsed.database not in {None, "", ":memory:"}:
        return parsed.set(drivername="sqlite+pysqlite")
    raise SettingsError("DATABASE__URL: must name a file of SQLite or a database of PostgreSQL")


def _sqlite_engine(url: URL, wait_seconds: float) -> Engine:
    path = Path(str(url.database)).absolute()
    first: list[tuple[int, int]] = []

    def connect() -> sqlite3.Connection:
        # Never made here: what was there may be somewhere else (migrate makes a new one). Never
        # another than the first: SQLite would put what the first has left in its log into it.
        before = identity(path)
        _let_what_lies_beside_be_written(path)
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", timeout=wait_seconds, check_same_thread=False, uri=True
        )
        if before is None or identity(path) != (first or [before])[0]:
            connection.close()
            raise sqlite3.DatabaseError("the database's file is another one than before")
        first[:] = [before]
        return connection

    def leave_a_file_that_was_moved(
        _connection: sqlite3.Connection, _record: object, _proxy: object
    ) -> None:
        if first != [identity(path)]:
            raise DisconnectionError("the database's file is not where it was")

    engine = create_engine(
        url,
        creator=connect,
        pool_size=8,
        max_overflow=8,
        pool_timeout=wait_seconds,
    )

    def note_what_may_only_read(
        _connection: sqlite3.Connection, record: ConnectionPoolEntry
    ) -> None:
        # SQLite opens to read alone what it may not write to, and tells nobody.
        record.info[_MAY_ONLY_READ] = not _may_be_written(path)

    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "connect", note_what_may_only_read)
    event.listen(engine, "checkin", _keep_what_may_write)
    event.listen(engine, "checkout", leave_a_file_that_was_moved)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def identity(path: Path) -> tuple[int, int] | None:
    """Of a file, whatever its name is; None: there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _beside(path: Path) -> tuple[Path, Path]:
    """The log of a file of SQLite and the log's index: beside the file that a link leads to."""
    real = path.resolve()
    return real.with_name(f"{real.name}-wal"), real.with_name(f"{real.name}-shm")


def _may_be_written(path: Path) -> bool:
    """Whether this process may write to a file of SQLite, and to what lies beside it."""
    return all(os.access(file, os.W_OK) for file in (path, *_beside(path)) if file.exists())


def _let_what_lies_beside_be_written(path: Path) -> None:
    """Give the log and its index the mode of the file, where that alone may be written to.

    SQLite makes them with the mode that the file has then, and leaves them there where it may only
    read: of a file that was read-only for a while, they would stay that for good.
    """
    for file in _beside(path):
        # Another's, or one that has gone meanwhile, is left as it is.
        with suppress(OSError):
            if os.access(path, os.W_OK) and not os.access(file, os.W_OK):
                file.chmod(path.stat().st_mode & 0o777)


def _keep_what_may_write(
    connection: sqlite3.Connection | None, record: ConnectionPoolEntry
) -> None:
    if connection is not None and record.info.get(_MAY_ONLY_READ):
        record.invalidate()


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own transactions begin late and deferred; ours begin in _begin_sqlite.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    # FULL: what has been accepted is still there after a power cut, at the price of one fsync a
    # commit. The journal is the write-ahead log, which migrate.upgrade chose for good.
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads and then writes fails at once, without waiting, when
    # another has written in between.
    immediate = connection.get_execution_options().get("immediate", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def insert(dialect: str, table: type[DeclarativeBase]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT of a connection's own dialect, named, which can say ON CONFLICT."""
    if dialect == "sqlite":
        return sqlite.insert(table)
    return postgresql.insert(table)
