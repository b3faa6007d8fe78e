"""Slow clients of the API's server."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from trainer_app.stack.ports import free_port, is_free

CONFIGURATION = """
from trainer_app.stack import gunicorn_worker
gunicorn_worker.HEADER_SECONDS = 1.0
gunicorn_worker.IDLE_SECONDS = 0.5
gunicorn_worker.BODY_SECONDS = 2.0
gunicorn_worker.LINGER_SECONDS = 0.2
gunicorn_worker.BODY_BYTES_PER_SECOND = 100.0
worker_class = "trainer_app.stack.gunicorn_worker.Worker"
control_socket_disable = True
threads = 2
bind = "127.0.0.1:{port}"
"""
APPLICATION = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/short":
        return [b"ok"]
    if environ["PATH_INFO"] == "/body":
        try:
            return [b"read %d" % len(environ["wsgi.input"].read())]
        except TimeoutError:
            return [b"too slow"]
    return (b"." * 65536 for _ in range(10_000))
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A server that loses patience quickly."""
    port = free_port("127.0.0.1")
    (tmp_path / "conf.py").write_text(CONFIGURATION.format(port=port))
    (tmp_path / "application.py").write_text(APPLICATION)
    command = ["-m", "gunicorn", "--config", "conf.py", "application:app"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, *command], cwd=tmp_path, stderr=log)
    deadline = time.monotonic() + 30
    while is_free("127.0.0.1", port):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield "127.0.0.1", port
    process.terminate()
    process.wait(20)


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """An answer may come in pieces."""
    read = b""
    while not read.endswith(end):
        piece = connection.recv(65_536)
        assert piece, read
        read += piece
    return read


def test_headers_that_do_not_end_are_cut_off(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as slow:
        for _ in range(60):
            try:
                slow.sendall(b"X")  # one byte at a time keeps no connection alive
            except OSError:
                return
            time.sleep(0.2)
    raise AssertionError("the server still waits for the end of the headers")


def test_a_client_that_stops_reading_gives_its_thread_back_without_an_error(
    address: tuple[str, int], tmp_path: Path
) -> None:
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        deaf.connect(address)
        deaf.sendall(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.5)
    with socket.create_connection(address, timeout=20) as quick:
        quick.sendall(b"GET /short HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert quick.recv(65_536).startswith(b"HTTP/1.1 200")
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "ERROR" not in log


@pytest.mark.parametrize("length", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_a_body_that_drips_is_not_read_to_its_end(address: tuple[str, int], length: str) -> None:
    with socket.create_connection(address, timeout=20) as slow:
        slow.sendall(f"POST /body HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n186a0\r\n".encode())
        for _ in range(100):
            slow.sendall(b"x")
            if select.select([slow], [], [], 0.2)[0]:
                break
        read_until(slow, b"too slow\r\n0\r\n\r\n")
        # What it was still to send is not waited for either.
        assert slow.recv(65_536) == b""


def test_a_slow_body_that_keeps_its_pace_is_read_to_its_end(address: tuple[str, int]) -> None:
    pieces = 12
    with socket.create_connection(address, timeout=20) as slow:
        head = f"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: {pieces * 200}\r\n\r\n"
        slow.sendall(head.encode())
        for _ in range(pieces):  # for longer than it may fall behind
            slow.sendall(b"x" * 200)
            time.sleep(0.3)
        read_until(slow, b"read 2400\r\n0\r\n\r\n")


def test_two_requests_of_one_connection_have_each_their_own_time(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=20) as kept:
        for _ in range(3):
            kept.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
            time.sleep(0.8)
            kept.sendall(b"ab")
            read_until(kept, b"read 2\r\n0\r\n\r\n")


def test_clients_that_do_not_close_hold_up_nobody(address: tuple[str, int]) -> None:
    """The server as it comes waits for each of them for 2 s, and for nobody else meanwhile."""
    head = b"GET /short HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with ExitStack() as opened:
        lingering = [
            opened.enter_context(socket.create_connection(address, timeout=20)) for _ in range(25)
        ]
        for connection in lingering:
            connection.sendall(head)
            read_until(connection, b"ok\r\n0\r\n\r\n")
        with socket.create_connection(address, timeout=20) as quick:
            quick.sendall(head)
            read_until(quick, b"ok\r\n0\r\n\r\n")
        assert lingering[0].recv(65_536) == b""  # it was told that nothing follows


def test_what_a_client_sends_after_its_last_request_does_not_take_back_the_answer(
    address: tuple[str, int],
) -> None:
    with socket.create_connection(address, timeout=20) as eager:
        head = b"GET /short HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        eager.sendall(head + b"x" * 100_000)
        read_until(eager, b"ok\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "options",
    ["close", "Close", "foo, close", "keep-alive,CLOSE ,x", "foo\r\nConnection: close"],
)
def test_a_client_that_wants_no_other_request_is_told_so(
    address: tuple[str, int], options: str
) -> None:
    with socket.create_connection(address, timeout=5) as last:
        last.sendall(f"GET /short HTTP/1.1\r\nHost: x\r\nConnection: {options}\r\n\r\n".encode())
        answer = read_until(last, b"ok\r\n0\r\n\r\n")
        assert b"\r\nConnection: close\r\n" in answer
        assert last.recv(65_536) == b""


def test_a_client_that_says_nothing_of_the_kind_may_send_another(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=5) as kept:
        for options in ("keep-alive", "foo", "closed, not-close"):
            head = f"GET /short HTTP/1.1\r\nHost: x\r\nConnection: {options}\r\n\r\n"
            kept.sendall(head.encode())
            read_until(kept, b"ok\r\n0\r\n\r\n")


@pytest.mark.parametrize("length", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_who_sends_a_body_that_may_be_left_unread_is_told_that_the_connection_ends(
    address: tuple[str, int], length: str
) -> None:
    with socket.create_connection(address, timeout=20) as refused:
        refused.sendall(f"POST /short HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
        answer = read_until(refused, b"ok\r\n0\r\n\r\n")
        assert b"\r\nConnection: close\r\n" in answer
        assert refused.recv(65_536) == b""


def test_a_body_is_asked_for_when_it_is_read(address: tuple[str, int]) -> None:
    head = "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(address, timeout=20) as asked:
        asked.sendall(head.format("/body").encode())
        read_until(asked, b"HTTP/1.1 100 Continue\r\n\r\n")
        asked.sendall(b"ab")
        read_until(asked, b"read 2\r\n0\r\n\r\n")
        asked.sendall(b"GET /short HTTP/1.1\r\nHost: x\r\n\r\n")
        read_until(asked, b"ok\r\n0\r\n\r\n")
    with socket.create_connection(address, timeout=20) as spared:
        spared.sendall(head.format("/short").encode())
        answer = read_until(spared, b"ok\r\n0\r\n\r\n")
        assert b"100 Continue" not in answer
        assert spared.recv(65_536) == b""  # whether the body follows is nobody's to guess
