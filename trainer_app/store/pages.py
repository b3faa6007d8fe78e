"""Lists, newest first, a page at a time."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from sqlalchemy import ColumnElement, literal, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from trainer_app.errors import FieldError
from trainer_app.safe_paths import ID_PATTERN

T = TypeVar("T")

# When the last item of a page was created, bit for bit, and its name: so a cursor leads on after
# that item was deleted. What begins with a 4 is 2.0 or more, and finite.
CURSOR: Final = rf"4[0-9a-f]{{15}}~{ID_PATTERN}"
_CURSOR: Final = re.compile(CURSOR)
_TIME: Final = struct.Struct(">d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Some items of a list, and how to ask for those after them."""

    items: Sequence[T]
    has_more: bool
    next: str | None  # the cursor of the page after this one; None: there is none


def older_than(
    after: str | None, *, time: InstrumentedAttribute[float], name: InstrumentedAttribute[str]
) -> list[ColumnElement[bool]]:
    """What rows after the cursor fulfil; stable while rows come in at the front, and go.

    Raises FieldError where ``after`` is no cursor.
    """
    if after is None:
        return []
    last, last_name = _read(after)
    return [tuple_(time, name) < tuple_(literal(last), literal(last_name))]


def cut(items: Sequence[T], limit: int, key: Callable[[T], tuple[float, str]]) -> Page[T]:
    """The page of the first ``limit`` items of ``limit + 1`` that were looked for.

    ``key`` tells when an item was created, in unix seconds, and its name.
    """
    kept = items[:limit]
    more = len(items) > limit
    return Page(items=kept, has_more=more, next=_cursor(*key(kept[-1])) if more else None)


def _cursor(time: float, name: str) -> str:
    return f"{_TIME.pack(time).hex()}~{name}"


def _read(cursor: str) -> tuple[float, str]:
    if _CURSOR.fullmatch(cursor) is None:
        raise FieldError("after", f"{cursor!r} is not the next of a page")
    bits, _, name = cursor.partition("~")
    return _TIME.unpack(bytes.fromhex(bits))[0], name
