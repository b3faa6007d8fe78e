"""Dates in the headers of a request: one that no calendar has is ignored, as HTTP asks.

RFC 9110, 13.1.3 and 13.1.4. werkzeug ignores what is no date, but fails on numbers that its
calendar has no room for, wherever it sends a file.
"""

from __future__ import annotations

from typing import Final

from flask import Flask, request
from werkzeug.http import parse_date

# A header, and all that goes with it: a part is sent only to who has the rest of the same file,
# which a date that is none does not say (13.1.5).
_DATES: Final = {
    "HTTP_IF_MODIFIED_SINCE": ("HTTP_IF_MODIFIED_SINCE",),
    "HTTP_IF_UNMODIFIED_SINCE": ("HTTP_IF_UNMODIFIED_SINCE",),
    "HTTP_IF_RANGE": ("HTTP_IF_RANGE", "HTTP_RANGE"),
}


def install(app: Flask) -> None:
    """Ignore such dates before any view reads them."""
    app.before_request(_ignore)


def _ignore() -> None:
    for name, ignored in _DATES.items():
        try:
            parse_date(request.environ.get(name))
        except OverflowError:
            for each in ignored:
                request.environ.pop(each, None)
