"""The headers of a download as the OpenAPI document has them: what is heeded, what is sent."""

from __future__ import annotations

from typing import Final

from trainer_app.api import examples

_DATE: Final = "Thu, 01 Jan 2026 00:05:47 GMT"
_SIZE: Final = 13_914_112
_ETAG: Final = f'"{examples.WEIGHTS_SHA256}"'


def _sent(description: str, example: object, kind: str = "string") -> dict[str, object]:
    return {
        "description": description,
        "required": True,
        "schema": {"type": kind},
        "example": example,
    }


def _heeded(name: str, description: str, example: str) -> dict[str, object]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},  # what is no such value is ignored, not refused
        "example": example,
    }


def attachment(filename: str) -> dict[str, object]:
    """The header that names the file."""
    return {
        "Content-Disposition": _sent(
            "The name to save it under.", f"attachment; filename={filename}"
        )
    }


_WHICH: Final = {
    "ETag": _sent("The file's SHA-256, in quotes.", _ETAG),
    "Accept-Ranges": _sent("That a part can be asked for.", "bytes"),
    "Cache-Control": _sent("May be kept, but is to be asked for each time.", "no-cache"),
    **attachment("model.safetensors"),
}
_LAST_MODIFIED: Final = {"Last-Modified": _sent("When the file was written.", _DATE)}
WHOLE: Final[dict[str, object]] = {
    **_WHICH,
    **_LAST_MODIFIED,
    "Content-Length": _sent("The file's size in bytes.", _SIZE, "integer"),
}
PART: Final[dict[str, object]] = {
    **_WHICH,
    **_LAST_MODIFIED,
    "Content-Length": _sent("The part's size in bytes.", _SIZE - 1_000_000, "integer"),
    "Content-Range": _sent(
        "Which part it is, and the file's size.", f"bytes 1000000-{_SIZE - 1}/{_SIZE}"
    ),
}
UNCHANGED: Final[dict[str, object]] = {**_WHICH}
BEHIND_THE_END: Final[dict[str, object]] = {
    "Content-Range": _sent("The file's size.", f"bytes */{_SIZE}")
}
CONDITIONS: Final = [
    _heeded(
        "Range",
        "One range of bytes, answered with 206; several, other units, and what is no range, such "
        "as bytes=5-2, are ignored.",
        "bytes=1000000-",
    ),
    _heeded(
        "If-Range",
        "Heed Range only where this is the file's ETag or Last-Modified, a weak ETag is neither; "
        "else answer it whole.",
        _ETAG,
    ),
    _heeded("If-Match", "Answer 412 unless one of these is the file's ETag, or is *.", _ETAG),
    _heeded(
        "If-Unmodified-Since",
        "Answer 412 where the file is newer; of no effect beside If-Match.",
        _DATE,
    ),
    _heeded(
        "If-None-Match",
        "Answer 304 where one of these is the file's ETag, or is *, whatever Range asks for.",
        _ETAG,
    ),
    _heeded(
        "If-Modified-Since",
        "Answer 304 where the file is not newer; of no effect beside If-None-Match.",
        _DATE,
    ),
]
