"""What is answered to a request that never reaches the application: the body of every error."""

from __future__ import annotations

import json
import uuid
from http import HTTPStatus
from typing import Final

import structlog
from gunicorn.http.errors import (
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
)

# The rest of what cannot be read as HTTP is a bad request, an unknown transfer coding included:
# no input makes a 5xx.
_STATUSES: Final = (
    (LimitRequestLine, HTTPStatus.REQUEST_URI_TOO_LONG),
    (LimitRequestHeaders, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    (ExpectationFailed, HTTPStatus.EXPECTATION_FAILED),
    (ParseException, HTTPStatus.BAD_REQUEST),
)
_MESSAGES: Final = {
    HTTPStatus.REQUEST_URI_TOO_LONG: "the address is too long",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "the headers are too many or too long",
    HTTPStatus.EXPECTATION_FAILED: "Expect: nothing but 100-continue is understood",
    HTTPStatus.BAD_REQUEST: "the request is not well-formed HTTP/1.1",
    HTTPStatus.INTERNAL_SERVER_ERROR: "an error inside the server; its log has the details",
}
_log = structlog.get_logger(__name__)


def refusal(error: Exception) -> bytes:
    """The whole answer to a request that failed with this error, which it logs."""
    status = next(
        (status for kind, status in _STATUSES if isinstance(error, kind)),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    request_id = str(uuid.uuid4())
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        code = "INTERNAL_ERROR"
        _log.error("a request failed", request_id=request_id, code=code, exc_info=error)
    else:
        code = "INVALID_INPUT"
        # Without the error's words: they repeat what was sent, a key perhaps.
        _log.info("request", request_id=request_id, status=int(status), error=type(error).__name__)
    fields = {"code": code, "message": _MESSAGES[status], "request_id": request_id}
    body = json.dumps(fields).encode()
    head = (
        f"HTTP/1.1 {status} {status.phrase}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "X-Content-Type-Options: nosniff",
        "Cache-Control: no-store",
        f"X-Request-ID: {request_id}",
    )
    return "\r\n".join([*head, "", ""]).encode() + body
