"""Server-sent events: how they are written, how many at once, and what a follower must know.

Each stream holds one thread of the server for as long as its client stays, so their number is
capped below the number of threads.
"""

from __future__ import annotations

import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from flask import Response, request

from trainer_app.api.errors import Detail, InvalidInput
from trainer_app.errors import Unavailable
from trainer_app.store import runs
from trainer_app.store.tables import FINAL

if TYPE_CHECKING:
    from trainer_app.store.database import Database

COMMENT_SECONDS: Final = 15.0  # between signs of life: finds out that a network is gone
# For the client's machine to say that it has what was sent: with the comment, 27 s after it is
# gone. Without a limit the kernel tries for a quarter of an hour.
RECEIPT_SECONDS: Final = 12.0
_STATUS_SECONDS: Final = 1.0
_QUIET_SECONDS: Final = 0.5  # a run's last lines follow its final status closely
_THREADS_KEPT: Final = 8  # for requests that are not streams
_EVENT_ID: Final = re.compile(r"[0-9]{1,18}")

COMMENT: Final = ": \n\n"
RETRY: Final = "retry: 2000\n\n"  # milliseconds after which a browser connects again
_UNBUFFERED: Final = {"X-Accel-Buffering": "no"}  # nginx would keep events back
STREAM_HEADERS: Final = {
    name: {
        "description": "Asks proxies to pass events on at once.",
        "required": True,
        "schema": {"type": "string"},
        "example": value,
    }
    for name, value in _UNBUFFERED.items()
}
LAST_EVENT_ID: Final = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The id of the last event that was received: goes on behind it.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
    "example": "114",
}

Events = Iterator[str]


class Followers:
    """The streams of this process: how many there may be, and which runs are over."""

    def __init__(self, database: Database, threads: int) -> None:
        self._slots = threading.BoundedSemaphore(max(1, threads - _THREADS_KEPT))
        self._database = database
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, bool]] = {}  # run -> when it was asked, whether final

    def stream(self, events: Events) -> Response:
        """The answer that sends the events; raises Unavailable when all slots are taken."""
        if not self._slots.acquire(blocking=False):
            raise Unavailable("too many streams are open; try again later")
        slot = ExitStack()  # gives back once, however often the answer is closed
        slot.callback(self._slots.release)
        response = Response(events, mimetype="text/event-stream")
        response.headers.update(_UNBUFFERED)
        response.call_on_close(slot.close)
        return response

    def is_over(self, run_id: str) -> bool:
        """Whether the run is final; the database is asked at most once a second for each run.

        While the database is away the last answer stands.
        """
        now = time.monotonic()
        with self._lock:
            asked_at, final = self._seen.get(run_id, (-_STATUS_SECONDS, False))
            if now - asked_at < _STATUS_SECONDS:
                return final
            self._seen[run_id] = (now, final)
        try:
            final = runs.get(self._database, run_id).status in FINAL
        except Unavailable:
            return False
        with self._lock:
            self._seen[run_id] = (now, final)
            self._forget(now)
        return final

    def _forget(self, now: float) -> None:
        """Keep only what is fresh, so that old runs take no memory."""
        self._seen = {
            run_id: seen
            for run_id, seen in self._seen.items()
            if now - seen[0] < 2 * _STATUS_SECONDS
        }

    def follow(
        self, run_id: str, read: Callable[[bool], Events], *, poll_seconds: float = 0.1
    ) -> Events:
        """What ``read`` finds, again and again until the run is over and nothing more comes.

        ``read`` is told whether the run is over, so that what it finds then is the rest. Ends
        early when the client of the present request hangs up.
        """
        client = request.environ.get("gunicorn.socket")
        if client is not None:
            limit_receipt(client)
        return self._follow(run_id, read, poll_seconds, client)

    def _follow(
        self,
        run_id: str,
        read: Callable[[bool], Events],
        poll_seconds: float,
        client: socket.socket | None,
    ) -> Events:
        yield RETRY  # at once, so that the client has its headers
        asked = False  # a client that sends no more, by a comment that it refuses if it is gone
        over = was_over = self.is_over(run_id)
        spoke_at = quiet_since = time.monotonic()
        while True:
            sent = False
            for text in read(over):
                sent = True
                yield text
            now = time.monotonic()
            if sent:
                spoke_at = quiet_since = now
            elif over and (was_over or now - quiet_since >= _QUIET_SECONDS):
                return
            elif now - spoke_at >= COMMENT_SECONDS:
                spoke_at = now
                yield COMMENT
            time.sleep(poll_seconds)
            if client is not None:
                if has_hung_up(client):
                    return
                if not asked and sends_no_more(client):
                    asked = True
                    yield COMMENT
            if not over:
                over = self.is_over(run_id)
                quiet_since = time.monotonic()


def limit_receipt(client: socket.socket) -> None:
    """Give a connection up when its other end does not confirm or take what was sent."""
    # Not a TCP connection, or a system without the option: the server's own time-outs remain.
    with suppress(AttributeError, OSError):
        milliseconds = int(RECEIPT_SECONDS * 1_000)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def has_hung_up(client: socket.socket) -> bool:
    """Whether the connection is over: the other end has refused what was sent."""
    return _state(client, 0) != 0


def sends_no_more(client: socket.socket) -> bool:
    """Whether the other end has closed its side, to go, or to do nothing more but listen.

    Only writing tells which: the first is what makes the other end refuse.
    """
    try:
        return _state(client, select.POLLIN) != 0 and client.recv(1, socket.MSG_PEEK) == b""
    except OSError:  # reset meanwhile
        return True


def _state(client: socket.socket, asked: int) -> int:
    """What poll says of a socket; of errors and the end of a connection it does so unasked."""
    try:
        poll = select.poll()
        poll.register(client, asked)
        return next((events for _, events in poll.poll(0)), 0)
    except (OSError, ValueError):  # closed on this side
        return select.POLLNVAL


def event(event_id: int, data: str) -> str:
    """One event; a line break inside the data becomes a second data line, not a second event."""
    lines = "".join(f"data: {line}\n" for line in re.split("\r\n|\r|\n", data))
    return f"id: {event_id}\n{lines}\n"


def last_event_id() -> int | None:
    """Where a client that was cut off goes on; raises InvalidInput for an id of nobody's."""
    given = request.headers.get("Last-Event-ID", "")
    if given == "":
        return None
    if not _EVENT_ID.fullmatch(given):
        raise unknown_event_id()
    return int(given)


def unknown_event_id() -> InvalidInput:
    """The error of a Last-Event-ID that no event of the stream has."""
    return InvalidInput([Detail("Last-Event-ID", "is not the id of an event of this stream")])
