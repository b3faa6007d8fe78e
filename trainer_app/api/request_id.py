"""Every request has an id, the caller's if it is well formed, and a line in the log."""

from __future__ import annotations

import re
import time
import uuid
from typing import Final

import structlog
from flask import Flask, Response, g, request

HEADER: Final = "X-Request-ID"
PATTERN: Final = "[A-Za-z0-9._-]{1,64}"
_WELL_FORMED: Final = re.compile(PATTERN)
_log = structlog.get_logger(__name__)


def install(app: Flask) -> None:
    """Give each request its id before anything else sees it; echo and log it on every answer."""
    app.before_request(_assign)
    app.after_request(_echo)


def current() -> str:
    """The id of the present request."""
    request_id: str = g.request_id
    return request_id


def _assign() -> None:
    given = request.headers.get(HEADER, "")
    g.began_at = time.monotonic()
    g.request_id = given if _WELL_FORMED.fullmatch(given) else str(uuid.uuid4())
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(
        request_id=g.request_id, method=request.method, path=request.path
    )


def _echo(response: Response) -> Response:
    response.headers[HEADER] = current()
    # The path without its query; a stream's time is that to its first byte.
    milliseconds = round((time.monotonic() - g.began_at) * 1_000, 1)
    _log.info("request", status=response.status_code, milliseconds=milliseconds)
    return response
