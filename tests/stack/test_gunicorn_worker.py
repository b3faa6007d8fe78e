"""Slow clients of the API's server."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer_app.stack.ports import free_port, is_free

CONFIGURATION = """
from trainer_app.stack import gunicorn_worker
gunicorn_worker.HEADER_SECONDS = 1.0
gunicorn_worker.IDLE_SECONDS = 0.5
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
