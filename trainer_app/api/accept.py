"""What every POST that enqueues does around its own work: ask the services, commit, wake.

The order is the promise: before anything is written, Redis and the database must answer (503),
and there must be room for files;
once the row is there, the answer is 202 whatever happens to the message.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from typing import Final

from flask import request

from trainer_app.api import current
from trainer_app.api.errors import Detail, InvalidInput
from trainer_app.errors import Unavailable
from trainer_app.queue import send_all
from trainer_app.room import takes_files
from trainer_app.store import wakeups
from trainer_app.store.idempotency import IdempotencyKey

KEY_HEADER: Final = "Idempotency-Key"
_KEY: Final = re.compile(r"[!-~]{1,255}")
KEY_PARAMETER: Final = {
    "name": KEY_HEADER,
    "in": "header",
    "required": False,
    "description": (
        "A repeat with the same key and body gets the first answer, and starts nothing; what has "
        "come of it since is at its Location. A key is remembered for CELERY__FAILURE_TTL_SEC "
        "(7 days by default) after its first use, and in any case until what it started has "
        "ended; that of a request to a finished model no longer than the request itself."
    ),
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "example": "tale-1",
}


def location_header(example: str) -> dict[str, object]:
    """What the OpenAPI document says of the header of a POST that leads to its GET."""
    return {
        "Location": {
            "description": "Where to see what became of it.",
            "required": True,
            "schema": {"type": "string", "format": "uri-reference"},
            "example": example,
        }
    }


def require_services() -> None:
    """Raise Unavailable unless Redis and the database answer, each within its time-out.

    And where a job could make no files: it would be accepted, and fail.
    """
    current.queue().ping()
    current.database().ping()
    if not takes_files(current.settings().paths.data_root):
        raise Unavailable("the server's disk takes no more files")


def idempotency_key(body: str) -> IdempotencyKey | None:
    """The request's key, tied to its address and body; raises InvalidInput for a bad one."""
    key = request.headers.get(KEY_HEADER)
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InvalidInput([Detail(KEY_HEADER, "must be 1 to 255 visible ASCII characters")])
    return IdempotencyKey(
        endpoint=f"{request.method} {request.path}"[:128],
        key=key,
        body_sha256=hashlib.sha256(body.encode()).hexdigest(),
    )


def wake(job_id: str) -> None:
    """Tell a worker of a committed job; housekeeping repeats whatever fails here."""
    with suppress(Unavailable):
        due = wakeups.due(current.database(), job_id=job_id)
        send_all(current.queue().publish, current.database(), due)
