"""gunicorn's threaded worker, with an end to the waiting for slow clients, and our errors.

As it comes, a client that sends one byte of a header now and then holds a thread for ever, and so
does one that sends a body like this; one that does not close its connection after "Connection:
close" holds up everybody.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog
from gunicorn.workers.gthread import TConn, ThreadWorker

from trainer_app.stack.paced_socket import PacedSocket
from trainer_app.stack.refusals import refusal

if TYPE_CHECKING:
    from gunicorn.http.message import Request

HEADER_SECONDS: Final = 20.0  # for a whole request line and its headers
IDLE_SECONDS: Final = 60.0  # to take a piece of the answer
LINGER_SECONDS: Final = 2.0  # for the client to close a connection that we have closed
ERROR_SECONDS: Final = 5.0  # to take the few bytes of an error
# How far a body may fall behind which average: that of a modem, at which 1 GB takes three days.
BODY_SECONDS: Final = 60.0
BODY_BYTES_PER_SECOND: Final = 4_096.0
_LEFT_BYTES: Final = 65_536  # of a body that nobody has read: gunicorn's own limit
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Worker(ThreadWorker):
    """Cuts off a client that does not finish its headers, or stops reading or sending."""

    def init_process(self) -> None:
        """Runs in the worker's process before it serves."""
        self._reading: dict[TConn, float] = {}  # connections in their headers -> until when
        super().init_process()

    def handle(self, conn: TConn) -> object:
        """Serve a connection that has something to read, in one of the threads."""
        structlog.contextvars.clear_contextvars()  # of the request that this thread had before
        self._reading[conn] = time.monotonic() + HEADER_SECONDS
        try:
            kept = super().handle(conn)
        finally:
            self._reading.pop(conn, None)
        if kept is False:
            _see_off(conn.sock)
        return kept

    def handle_request(self, req: Request, conn: TConn) -> object:
        """Serve a request whose headers are complete."""
        self._reading.pop(conn, None)
        conn.sock.settimeout(IDLE_SECONDS)
        if _is_last(req) or _may_be_left(req):
            req.force_close()  # says so in the answer
        # gunicorn asks for every body; ours is asked for when it is read, and not to be refused.
        awaited, req._expected_100_continue = req._expected_100_continue, False  # noqa: SLF001
        body = PacedSocket(
            conn.sock,
            patience_seconds=BODY_SECONDS,
            bytes_per_second=BODY_BYTES_PER_SECOND,
            invitation=_CONTINUE if awaited else b"",
        )
        reader = conn.parser.unreader
        reader.sock = body
        try:
            return super().handle_request(req, conn) and not body.is_waited_for
        except TimeoutError:
            return False  # the client is gone: close, and do not log it as an error of ours
        finally:
            reader.sock = conn.sock

    def handle_error(
        self,
        req: object,  # noqa: ARG002  gunicorn's signature
        client: socket.socket,
        addr: object,  # noqa: ARG002
        exc: Exception,
    ) -> None:
        """Answer what cannot be read as HTTP, as gunicorn does in HTML."""
        answer = refusal(exc)
        with suppress(OSError):  # the client may be gone
            client.settimeout(ERROR_SECONDS)
            client.sendall(answer)

    def murder_pending(self) -> None:
        """Called every second by the main loop."""
        super().murder_pending()
        now = time.monotonic()
        for conn, deadline in list(self._reading.items()):
            if now > deadline:
                # The thread that waits in recv() gets an end of file and gives itself back.
                with suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RDWR)


def _is_last(req: Request) -> bool:
    """Whether the client wants no other request on its connection.

    RFC 9112, 9.6: by "close" anywhere in Connection; gunicorn knows it by itself alone.
    """
    options = (value.split(",") for name, value in req.headers if name == "CONNECTION")
    return any(option.strip(" \t").lower() == "close" for each in options for option in each)


def _may_be_left(req: Request) -> bool:
    """Whether gunicorn closes the connection if the body is refused without having been read.

    It reads so much of one, and closes without a word where there is more: a client that sends its
    next request at once would not know whether that was heard.
    """
    headers = dict(req.headers)
    length = headers.get("CONTENT-LENGTH", "0")
    return "TRANSFER-ENCODING" in headers or int(length) > _LEFT_BYTES


def _see_off(sock: socket.socket) -> None:
    """Tell the client that nothing follows, and read what it still sends until it closes, too.

    To close at once would take back what it has not read yet (RFC 9112, 9.6). gunicorn waits for
    it as well, but in its main loop, in which all others wait; here it finds nothing left to wait
    for.
    """
    give_up_at = time.monotonic() + LINGER_SECONDS
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(LINGER_SECONDS)
        while sock.recv(65_536) and (left := give_up_at - time.monotonic()) > 0:
            sock.settimeout(left)
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RD)
