"""Server-sent events, read from a stream of bytes (the WHATWG HTML standard, section 9.2.6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event; an empty ``id`` is one that was not sent."""

    id: str
    data: str


def read_events(blocks: Iterable[bytes]) -> Iterator[Event]:
    """The events of a stream; comments and events without data are passed over.

    What follows the last empty line is half an event, of a connection that broke: left out.
    """
    event_id = ""
    data: list[str] = []
    for line in _lines(blocks):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Event(event_id, "\n".join(data))
            event_id, data = "", []
        elif name == "data":
            data.append(value)
        elif name == "id":
            event_id = value


def _lines(blocks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines; str.splitlines would also split at U+2028, which may stand in a log line."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
