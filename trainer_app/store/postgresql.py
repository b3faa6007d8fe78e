"""Connections to PostgreSQL that wait for it for a while only, also when it is frozen.

A server that is stopped by a signal, or whose disk hangs, still takes what is sent to it: its
kernel answers. Neither its own time-outs nor TCP's notice; a reader would wait for ever.
"""

from __future__ import annotations

import time
from typing import Final, Never, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import TupleRow
from psycopg.waiting import Ready
from sqlalchemy import URL, Dialect, Engine, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry

_CONNECT_SECONDS: Final = 2  # with the ping, an API that finds it frozen says so within 5 s
_PING_SECONDS: Final = 1.5  # for the question whether a connection of the pool still stands
_GRACE_SECONDS: Final = 1.0  # for a server that is alive to say that its own time-out was over

Result = TypeVar("Result")


class ImpatientConnection(psycopg.Connection[TupleRow]):
    """Raises OperationalError, and is closed, when the server says nothing for too long."""

    patience: float = float("inf")  # seconds of silence
    is_proved = False  # the server has answered since the connection was last taken

    def wait(
        self,
        gen: PQGen[Result],
        interval: float = 0.1,
        timeout: float | None = None,
    ) -> Result:
        """Wait for an answer: one to the first question after a break may be expected soon."""
        patience = self.patience if self.is_proved else min(self.patience, _PING_SECONDS)
        return super().wait(self._watched(gen, patience), interval, timeout)

    def _watched(self, gen: PQGen[Result], patience: float) -> PQGen[Result]:
        give_up_at = time.monotonic() + patience
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                now = time.monotonic()
                if ready != Ready.NONE:
                    give_up_at = now + patience
                    self.is_proved = self.is_proved or bool(ready & Ready.R)
                elif now > give_up_at:
                    self.pgconn.finish()  # so that nobody waits for a rollback
                    raise psycopg.OperationalError(f"no answer within {patience:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            result: Result = end.value
            return result


def postgresql_engine(url: URL, wait_seconds: float) -> Engine:
    """An engine each of whose waits is bounded: a statement by ``wait_seconds``."""
    options = (
        url.query.get("options", ""),
        "-c lock_timeout=2s",
        # A worker that is frozen inside a transaction must not keep its row locked.
        "-c idle_in_transaction_session_timeout=15s",
        f"-c statement_timeout={round(wait_seconds * 1_000)}",
    )
    engine = create_engine(
        url,
        connect_args={
            "application_name": "model-trainer",
            "connect_timeout": _CONNECT_SECONDS,
            "options": " ".join(map(str, options)),
            # A peer that vanished is noticed within seconds.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 2,
            "tcp_user_timeout": 5_000,
        },
        pool_size=8,
        max_overflow=8,
        pool_timeout=wait_seconds,
        pool_pre_ping=True,
    )

    def connect(
        _dialect: Dialect,
        _entry: ConnectionPoolEntry,
        arguments: list[str],
        named: dict[str, Never],  # of as many types as names
    ) -> ImpatientConnection:
        connection = ImpatientConnection.connect(*arguments, **named)
        connection.patience = wait_seconds + _GRACE_SECONDS
        return connection

    def put_back(connection: ImpatientConnection | None, entry: ConnectionPoolEntry) -> None:
        if connection is None:
            return
        connection.is_proved = False
        # A session keeps this setting of its database as it was when it began. PostgreSQL 14 and
        # later tell it unasked.
        if connection.pgconn.parameter_status(b"default_transaction_read_only") == b"on":
            entry.invalidate()

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "checkin", put_back)
    return engine
