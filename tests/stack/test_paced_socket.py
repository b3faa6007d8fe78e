"""How long a body may take."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from trainer_app.stack.paced_socket import PacedSocket


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection: the client's and the server's."""
    client, server = socket.socketpair()
    server.settimeout(7.0)
    with client, server:
        yield client, server


def test_a_client_that_sends_nothing_is_given_up(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    _, server = pair
    paced = PacedSocket(server, patience_seconds=0.1, bytes_per_second=10)
    for _ in range(2):  # and stays given up
        with pytest.raises(TimeoutError):
            paced.recv(100)
    assert server.gettimeout() == 7.0


def test_what_a_quick_client_has_sent_buys_it_no_more_patience_than_at_first(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, server = pair
    paced = PacedSocket(server, patience_seconds=0.2, bytes_per_second=1)
    client.sendall(b"x" * 1_000)  # a quarter of an hour's worth
    assert len(paced.recv(10_000)) == 1_000
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        paced.recv(100)
    assert time.monotonic() - began < 100


def test_the_servers_own_time_is_not_charged(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    paced = PacedSocket(server, patience_seconds=0.2, bytes_per_second=0.001)
    for _ in range(3):
        client.sendall(b"x")
        time.sleep(0.15)
        assert paced.recv(10) == b"x"


def test_a_client_that_hangs_up_ends_the_body(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    client.close()
    paced = PacedSocket(server, patience_seconds=5, bytes_per_second=10)
    assert paced.recv(10) == b""
