"""What SQLite keeps beside its file, as a stack leaves it that stops.

Its processes end without closing the database, and the last one's log, of megabytes, would stay:
whoever copies the file alone would miss what was written last.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Final

import structlog

from trainer_app.errors import Unavailable
from trainer_app.store.database import Database, identity

_LOCKED_SECONDS: Final = 1.0  # for others that use the file
_SECONDS: Final = 3.0  # for a disk that may not answer at all

_log = structlog.get_logger(__name__)


class WriteAheadLog:
    """That of one database; of PostgreSQL, which has none beside it, nothing is done."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._path: Path | None = None
        self._file: tuple[int, int] | None = None

    def remember(self) -> None:
        """Know the file again: what another has in its place is not that log's."""
        try:
            self._path = Database(self._url).file
        except Unavailable:
            return
        self._file = None if self._path is None else identity(self._path)

    def put_away(self) -> None:
        """Write into the file what the log has for it, once nobody uses it; wait for seconds alone.

        Where that cannot be, as in a file that is away, damaged, locked or only to be read, the log
        stays as it is, and counts at the next start.
        """
        # A daemon: a disk that hangs keeps no process from ending.
        thread = Thread(target=self._put_away, name="write-ahead-log", daemon=True)
        thread.start()
        thread.join(_SECONDS)

    def _put_away(self) -> None:
        if self._path is None or self._file is None or identity(self._path) != self._file:
            return
        uri = f"{self._path.as_uri()}?mode=rw"
        try:
            with closing(sqlite3.connect(uri, timeout=_LOCKED_SECONDS, uri=True)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            _log.debug("the write-ahead log stays", error=str(error))
