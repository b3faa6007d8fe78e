"""The gate that a JSON body passes before any schema sees it.

The standard library's decoder takes duplicate keys, NaN and nesting without end; frameworks take
a missing content type for an empty object, which any web page can send. None of that here.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from gunicorn.http.errors import ChunkMissingTerminator, NoMoreData, ParseException
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    RequestEntityTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)

from trainer_app.api.fields import integer, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from flask import Request

MAX_DEPTH: Final = 32
_STRING_OR_BRACKET: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
_BLOCK: Final = 65_536
_CHUNK_END: Final = b"\r\n"
_CHARSETS: Final = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})


def read_json(request: Request, limit: int) -> object:
    """The decoded JSON body of at most ``limit`` bytes.

    Raises the HTTP exceptions 400, 408, 413 and 415. Numbers that no field can hold (NaN, 1e400, an
    integer of a thousand digits) decode to such that every field refuses.
    """
    check_framing(request)
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("the body must be sent as Content-Type: application/json")
    check_charset(request.mimetype_params)
    check_encoding(request)
    if (request.content_length or 0) > limit:
        raise RequestEntityTooLarge(f"the body must not be larger than {limit} bytes")
    return decode(b"".join(read_blocks(request, limit)))


def read_optional_json(request: Request, limit: int) -> object:
    """As ``read_json``; an absent or empty body stands for an empty object."""
    if not request.content_length and "Transfer-Encoding" not in request.headers:
        return {}
    return read_json(request, limit)


def check_framing(request: Request) -> None:
    """Refuse a body of two lengths: servers and proxies would disagree on where it ends."""
    if request.headers.get("Content-Length") and request.headers.get("Transfer-Encoding"):
        raise BadRequest("a request cannot have both Content-Length and Transfer-Encoding")


def check_charset(parameters: Mapping[str, str]) -> None:
    """Refuse a media type of another charset than UTF-8; ASCII is a part of it."""
    charset = parameters.get("charset", "utf-8").lower()
    if charset not in _CHARSETS:
        raise UnsupportedMediaType(f"text is sent in UTF-8, and not in {shown(charset)}")


def check_encoding(request: Request) -> None:
    """Refuse compressed bodies: a few bytes may hold gigabytes."""
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    transfer = request.headers.get("Transfer-Encoding", "chunked").strip().lower()
    if encoding != "identity" or transfer != "chunked":
        raise UnsupportedMediaType("the body must not be compressed")


def read_blocks(request: Request, limit: int) -> Iterator[bytes]:
    """The body block by block; 413 as soon as it is longer than ``limit`` bytes.

    Raises ClientDisconnected where it ends before its last chunk, or before its Content-Length: the
    server's own stream just ends there, and half a text would pass for a whole one. Raises
    RequestTimeout where it comes too slowly for the server.
    """
    read = 0
    while block := _read(request):
        read += len(block)
        if read > limit:
            raise RequestEntityTooLarge(f"the body must not be larger than {limit} bytes")
        yield block
    if read < (request.content_length or 0):
        raise ClientDisconnected("the body is shorter than its Content-Length")


def _read(request: Request) -> bytes:
    try:
        block: bytes = request.stream.read(_BLOCK)
    except TimeoutError as error:
        raise RequestTimeout("the body comes too slowly") from error
    except (ParseException, NoMoreData) as error:
        if _is_cut_off(error):
            raise ClientDisconnected("the body ends before the end of its last chunk") from error
        raise BadRequest("the chunks of the body are malformed") from error
    except OSError as error:  # the server's words for a connection that broke off
        raise ClientDisconnected from error
    return block


def _is_cut_off(error: ParseException | NoMoreData) -> bool:
    """Whether the chunks came to no end, rather than to something that is none."""
    if isinstance(error, ChunkMissingTerminator):
        return len(error.term) < len(_CHUNK_END)  # of what there was in its place
    return isinstance(error, NoMoreData)


def decode(data: bytes) -> object:
    """Strict JSON; raises BadRequest with the reason."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: bad byte at offset {error.start}") from None
    _check_depth(data)
    try:
        value: object = json.loads(text, object_pairs_hook=_unique, parse_int=integer)
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    return value


def _check_depth(data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(data):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(match[0], 0)
        if depth > MAX_DEPTH:
            raise BadRequest(f"the body is nested deeper than {MAX_DEPTH} levels")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadRequest("the body has the same key twice in one object")
    return found
