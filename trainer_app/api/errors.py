"""The one place where errors become HTTP: code to status, and the body that every error has."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
from flask import Flask, Response, json
from werkzeug.exceptions import HTTPException

from trainer_app.api import request_id
from trainer_app.errors import (
    CorpusEmpty,
    CorpusNotText,
    FieldError,
    NotFound,
    RowDamaged,
    TrainerError,
)

if TYPE_CHECKING:
    from werkzeug.sansio.response import Response as SansioResponse

STATUSES: Final[Mapping[str, int]] = {
    "INVALID_INPUT": 422,
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "RUN_NOT_FOUND": 404,
    "TOKENIZER_NOT_FOUND": 404,
    "CORPUS_NOT_FOUND": 404,
    "EVAL_NOT_FOUND": 404,
    "DATA_NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "CONFLICT": 409,
    "NOT_READY": 409,
    "MODEL_INCOMPATIBLE": 409,
    "ALREADY_FINISHED": 409,
    "CORPUS_EMPTY": 422,
    "CORPUS_NOT_TEXT": 422,
    "RATE_LIMITED": 429,
    "UNAVAILABLE": 503,
    "INTERNAL_ERROR": 500,
}
# The codes of errors that HTTP itself knows, by status; other 4xx are bad input of some kind.
_HTTP_CODES: Final[Mapping[int, str]] = {
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    429: "RATE_LIMITED",
    503: "UNAVAILABLE",
}
RETRY_AFTER_SECONDS: Final = 5
_MESSAGES: Final[Mapping[int, str]] = {
    404: "there is nothing at this address",
    405: "this address does not take this method",
}
# What is wrong with the machine, and neither with a request nor with the program. A name that a
# client sent never comes to these: safe_paths answers for what may not be read.
MACHINE_FAULTS: Final[Mapping[int, str]] = {
    errno.EACCES: "the server may not use one of its files or folders",
    errno.EDQUOT: "the disk has no space left",
    errno.EIO: "the disk fails to read or write",
    errno.EMFILE: "the server has too many files open",
    errno.ENFILE: "the machine has too many files open",
    errno.ENOMEM: "the machine has no memory left",
    errno.ENOSPC: "the disk has no space left",
    errno.EPERM: "the server may not use one of its files or folders",
    errno.EROFS: "the disk can only be read",
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Detail:
    """What is wrong with one field."""

    field: str
    message: str


class InvalidInput(TrainerError):
    """A request does not validate; ``details`` names each field."""

    code = "INVALID_INPUT"

    def __init__(self, details: Sequence[Detail]) -> None:
        named = "; ".join(f"{detail.field}: {detail.message}" for detail in details[:3])
        super().__init__(f"the request is not valid: {named}")
        self.details = tuple(details)


class Unauthorized(TrainerError):
    """The request brings no key."""

    code = "UNAUTHORIZED"


class Forbidden(TrainerError):
    """The request's key, host or origin is not one of ours."""

    code = "FORBIDDEN"


@contextmanager
def field_named(field: str) -> Iterator[None]:
    """Put the field that names a thing before what is wrong with the thing."""
    try:
        yield
    except (NotFound, CorpusEmpty, CorpusNotText, RowDamaged) as error:
        raise type(error)(f"{field}: {error.message}") from None


def install(app: Flask) -> None:
    """Answer every error, whoever raised it, with the one body."""
    app.register_error_handler(TrainerError, _on_trainer_error)
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(OSError, _on_os_error)
    app.register_error_handler(Exception, _on_bug)


def _on_trainer_error(error: TrainerError) -> Response:
    status = STATUSES.get(error.code, 500)
    if status >= 500:
        _log.warning("a request failed", code=error.code, error=error.message)
    return _answer(status, error.code, error.message, _details(error))


def _details(error: TrainerError) -> Sequence[Detail]:
    if isinstance(error, InvalidInput):
        return error.details
    if isinstance(error, FieldError):
        return [Detail(error.field, error.reason)]
    return ()


def _on_http_exception(error: HTTPException) -> Response | SansioResponse:
    status = error.code or 500
    if status >= 500:
        return _on_bug(error)
    message = _MESSAGES.get(status) or error.description or "the request is not valid"
    if status == STATUSES["RATE_LIMITED"]:
        message = f"more requests than {message} of one client; see Retry-After"
    response = _answer(status, _HTTP_CODES.get(status, "INVALID_INPUT"), message)
    for name, value in error.get_headers():
        if name != "Content-Type":  # such as Allow
            response.headers[name] = value
    return response


def _on_os_error(error: OSError) -> Response:
    message = MACHINE_FAULTS.get(error.errno or 0)
    if message is None:
        return _on_bug(error)
    # The log alone names the file; without a traceback, to show which takes files and memory.
    _log.warning("a request failed", code="UNAVAILABLE", error=str(error))
    return _answer(STATUSES["UNAVAILABLE"], "UNAVAILABLE", message)


def _on_bug(error: Exception) -> Response:
    _log.error("a request failed", code="INTERNAL_ERROR", exc_info=error)
    return _answer(500, "INTERNAL_ERROR", "an error inside the server; its log has the details")


def _answer(status: int, code: str, message: str, details: Sequence[Detail] = ()) -> Response:
    body: dict[str, object] = {
        "code": code,
        "message": message,
        "request_id": request_id.current(),
    }
    if details:
        body["details"] = [{"field": item.field, "message": item.message} for item in details]
    response = Response(json.dumps(body), status, mimetype="application/json")
    if status == STATUSES["UNAVAILABLE"]:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response
