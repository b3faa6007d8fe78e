"""Lists, newest first, a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, literal, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from trainer_app.errors import FieldError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Some items of a list, and how to ask for those after them."""

    items: Sequence[T]
    has_more: bool
    next: str | None  # the cursor of the page after this one; None: there is none


def older_than(
    connection: Connection,
    after: str | None,
    *,
    times: Select[float],
    time: InstrumentedAttribute[float],
    name: InstrumentedAttribute[str],
) -> list[ColumnElement[bool]]:
    """What rows after the cursor fulfil; stable while new rows come in at the front.

    The cursor is the name of the last item seen; ``times`` selects when each was created.
    Raises FieldError when nothing has that name.
    """
    if after is None:
        return []
    at = connection.scalar(times.where(name == after))
    if at is None:
        raise FieldError("after", f"{after!r} is not an item of this list")
    return [tuple_(time, name) < tuple_(literal(at), literal(after))]


def cut(items: Sequence[T], limit: int, name: Callable[[T], str]) -> Page[T]:
    """The page of the first ``limit`` items of ``limit + 1`` that were looked for."""
    kept = items[:limit]
    more = len(items) > limit
    return Page(items=kept, has_more=more, next=name(kept[-1]) if more else None)
