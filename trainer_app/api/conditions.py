"""The conditions and the range that a download comes with, in the order of RFC 9110, 13.2.2.

werkzeug looks at Range before the conditions, has no If-Unmodified-Since, and takes a weak tag in
If-Range for a strong one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Final

from flask import Response, request
from werkzeug.exceptions import PreconditionFailed
from werkzeug.http import http_date, parse_date

_ONE_RANGE: Final = re.compile(
    r"bytes=(?:(?P<first>[0-9]{1,30})-(?P<last>[0-9]{0,30})|-(?P<suffix>[0-9]{1,30}))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Which file it is that can be downloaded."""

    etag: str  # without quotes, and strong
    modified: datetime  # whole seconds, as HTTP has them
    size: int  # bytes


def heed(response: Response, version: Version) -> None:
    """Let the answer, which has all of the file, be what the request's headers ask for.

    Raises PreconditionFailed and RequestedRangeNotSatisfiable.
    """
    response.set_etag(version.etag)
    response.last_modified = version.modified
    _check(version)
    environ = {"REQUEST_METHOD": request.method}
    if _is_known(version):
        response.status_code = HTTPStatus.NOT_MODIFIED
    elif (asked := _range(version)) is not None:
        environ["HTTP_RANGE"] = asked
    response.make_conditional(environ, accept_ranges=True, complete_length=version.size)


def _check(version: Version) -> None:
    """Refuse who wants another file, by its tag or else by its age."""
    if "If-Match" in request.headers:
        if not request.if_match.contains(version.etag):
            raise PreconditionFailed("If-Match does not name the file that there is")
    elif request.if_unmodified_since and version.modified > request.if_unmodified_since:
        written = http_date(version.modified)
        raise PreconditionFailed(f"If-Unmodified-Since is before the file's time, {written}")


def _is_known(version: Version) -> bool:
    """Whether the client has the file already, by its tag or else by its age."""
    if "If-None-Match" in request.headers:
        return request.if_none_match.contains_weak(version.etag)
    since = request.if_modified_since
    return since is not None and version.modified <= since


def _range(version: Version) -> str | None:
    """The range to answer with, as RFC 9110, 14.1.2 and 14.2 have it; None: all of the file.

    Units that nobody knows, several ranges and what is no range are ignored; the last so many
    bytes of a file that has fewer are all that it has.
    """
    found = _ONE_RANGE.fullmatch(request.headers.get("Range", ""))
    if found is None or request.method != "GET" or not _is_resumed(version):
        return None
    first, last, suffix = found.group("first", "last", "suffix")
    if suffix is not None:
        return "bytes=0-" if int(suffix) > version.size else found[0]
    return None if last and int(last) < int(first) else found[0]


def _is_resumed(version: Version) -> bool:
    """Whether If-Range, where there is one, names this file by its strong tag or its own date."""
    given = request.headers.get("If-Range")
    if given is None or given.strip() == f'"{version.etag}"':
        return True
    return parse_date(given) == version.modified
