"""The clock of a database, set by a test: where the store reads time, and nowhere else."""

from __future__ import annotations

import sqlite3
import time
from typing import Final

from sqlalchemy import event

from tests.conftest import PostgresServer
from trainer_app.store.database import Database

_EPOCH: Final = 2_440_587.5  # of unix, as a Julian day


class SetClock:
    """That of SQLite, for one process's connections; it stands still unless it is set."""

    def __init__(self, database: Database) -> None:
        """``database`` has not been used yet."""
        self.now = time.time()
        event.listen(database._engine(), "connect", self._take_over)

    def _take_over(self, connection: sqlite3.Connection, _record: object) -> None:
        connection.create_function("julianday", 1, self._julianday)

    def _julianday(self, _word: str) -> float:
        return self.now / 86_400 + _EPOCH


def let_jump(server: PostgresServer) -> None:
    """Give PostgreSQL a clock that ``jump`` can set, for all connections from now on."""
    for statement in (
        "CREATE SCHEMA clocks",
        "CREATE TABLE clocks.ahead (seconds double precision)",
        "INSERT INTO clocks.ahead VALUES (0)",
        """
        CREATE FUNCTION clocks.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql AS $$
            SELECT pg_catalog.clock_timestamp() + make_interval(secs => seconds) FROM clocks.ahead
        $$
        """,
        # What stands before pg_catalog is found first.
        "ALTER DATABASE postgres SET search_path = public, clocks, pg_catalog",
    ):
        server.execute(statement)


def jump(server: PostgresServer, seconds: float) -> None:
    """Set the clock of PostgreSQL ahead, or back."""
    server.execute(f"UPDATE clocks.ahead SET seconds = seconds + {seconds}")
