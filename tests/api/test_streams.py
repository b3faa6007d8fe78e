"""What a stream knows of its client's connection."""

from __future__ import annotations

import errno
import socket
from contextlib import closing

import pytest

from trainer_app.api import streams


def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose network is gone, which nothing here can take away."""
    monkeypatch.setattr(streams, "RECEIPT_SECONDS", 0.5)
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as listener,
        closing(socket.create_connection(listener.getsockname())),
    ):
        server, _ = listener.accept()
        with closing(server):
            streams.limit_receipt(server)
            server.settimeout(60)
            with pytest.raises(TimeoutError) as given_up:
                server.sendall(bytes(64 * 1_048_576))  # more than any buffer holds
    assert given_up.value.errno == errno.ETIMEDOUT  # by the kernel, not by the server's patience


def test_another_connection_than_tcp_is_left_as_it_is() -> None:
    one, other = socket.socketpair()
    with one, other:
        streams.limit_receipt(one)
        one.sendall(b"x")
        assert other.recv(1) == b"x"


def test_a_connection_that_was_closed_here_is_over() -> None:
    one, other = socket.socketpair()
    with other:
        one.close()
        assert streams.has_hung_up(one)
        assert streams.sends_no_more(one)


def test_the_limit_and_the_comments_give_a_place_back_within_30_seconds() -> None:
    assert streams.COMMENT_SECONDS + streams.RECEIPT_SECONDS < 30
