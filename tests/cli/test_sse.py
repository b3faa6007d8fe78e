"""Reading server-sent events."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_app.sse import Event, read_events


def blocks(text: str, size: int) -> Iterator[bytes]:
    data = text.encode()
    return (data[start : start + size] for start in range(0, len(data), size))


def test_events_come_whole_however_the_bytes_are_cut() -> None:
    text = "retry: 1000\n\n: comment\n\nid: 1\ndata: ä\u2028b\n\nid: 2\r\ndata:c\r\ndata: d\r\n\r\n"
    for size in (1, 2, 3, 1_000):
        assert list(read_events(blocks(text, size))) == [Event("1", "ä\u2028b"), Event("2", "c\nd")]


def test_half_an_event_is_left_out() -> None:
    assert list(read_events([b"id: 1\ndata: whole\n\nid: 2\ndata: half\n"])) == [
        Event("1", "whole")
    ]
