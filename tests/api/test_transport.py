"""The API behind its real server: what only a socket can show."""

from __future__ import annotations

import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import World
from tests.api.served import served
from tests.conftest import RedisServer, settings_of
from trainer_app.store.database import Database
from trainer_app.store.tables import Status

THREADS = 12  # of which 4 may be streams
STREAMS = 4


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[int]:
    """A server of its own, all of whose places are free; its port."""
    with served(tmp_path / "server.log", {"API__THREADS": str(THREADS)}) as port:
        yield port


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A server for the tests that leave it as it was, and what stands behind it."""

    port: int
    world: World


@pytest.fixture(scope="module")
def shared(
    migrated_sqlite: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    root = tmp_path_factory.mktemp("shared")
    file = root / "trainer.db"
    shutil.copyfile(migrated_sqlite, file)
    with ExitStack() as opened:
        with pytest.MonkeyPatch.context() as patch:
            settings = settings_of(root, f"sqlite:///{file}", redis_server.url, patch)
            port = opened.enter_context(served(root / "server.log", {}))
        database = opened.enter_context(closing(Database(settings.database_url)))
        yield Shared(port=port, world=World(settings=settings, database=database))


def send(port: int, request: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(request)
    return connection


def status(connection: socket.socket) -> int:
    return int(connection.recv(65_536).split(b" ")[1])


def post(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def wait_until(true: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 20
    while not true():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def test_100_megabytes_are_refused_before_they_are_sent(shared: Shared) -> None:
    head = post("/runs/train", "Content-Type: application/json", "Content-Length: 100000000")
    with closing(send(shared.port, head + b"{")) as connection:
        assert status(connection) == 413


def test_two_lengths_are_refused(shared: Shared) -> None:
    lengths = ("Content-Length: 2", "Transfer-Encoding: chunked")
    head = post("/runs/train", "Content-Type: application/json", *lengths)
    with closing(send(shared.port, head + b"2\r\n{}\r\n0\r\n\r\n")) as connection:
        assert status(connection) == 400


@pytest.mark.parametrize(
    ("path", "kind"), [("/runs/train", "application/json"), ("/corpora", "text/plain")]
)
def test_a_body_compressed_for_its_transfer_is_refused(
    shared: Shared, path: str, kind: str
) -> None:
    head = post(path, f"Content-Type: {kind}", "Transfer-Encoding: gzip, chunked")
    with closing(send(shared.port, head + b"2\r\n{}\r\n0\r\n\r\n")) as connection:
        assert status(connection) == 415


def test_a_chunked_upload_is_streamed(shared: Shared) -> None:
    blocks = [b"line %d\n" % number * 1_000 for number in range(50)]
    response = httpx.post(
        f"http://127.0.0.1:{shared.port}/corpora",
        content=iter(blocks),
        headers={"Content-Type": "text/plain"},
    )
    assert (response.status_code, response.json()["lines"]) == (201, 50_000)
    stored = shared.world.settings.paths.uploads / f"{response.json()['file_id']}.txt"
    assert stored.read_bytes() == b"".join(blocks)


@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_an_upload_whose_client_vanishes_leaves_no_file(shared: Shared, length: str) -> None:
    head = post("/corpora", "Content-Type: text/plain", length)
    folder = shared.world.settings.paths.uploads
    folder.mkdir(exist_ok=True)
    before = set(folder.iterdir())
    with closing(send(shared.port, head + b"3e8\r\n" + b"x" * 100)):
        wait_until(lambda: set(folder.iterdir()) > before)
    wait_until(lambda: set(folder.iterdir()) == before)


def test_a_key_of_7_kilobytes_is_answered(shared: Shared) -> None:
    response = httpx.get(f"http://127.0.0.1:{shared.port}/runs", headers={"X-Api-Key": "k" * 7_000})
    assert response.status_code == 200


def test_streams_leave_room_and_a_client_that_vanishes_gives_its_place_back(
    server: int, world: World
) -> None:
    run_id = world.run(Status.RUNNING)
    world.log(run_id, b"one\n")
    head = f"GET /runs/{run_id}/logs/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    followers = [send(server, head) for _ in range(STREAMS)]
    assert [status(follower) for follower in followers] == [200] * STREAMS
    with closing(send(server, head)) as refused:
        assert status(refused) == 503
    began = time.monotonic()
    assert httpx.get(f"http://127.0.0.1:{server}/runs/{run_id}").status_code == 200
    assert time.monotonic() - began < 1
    followers.pop().close()
    answered = 503
    while answered == 503 and time.monotonic() - began < 20:
        world.log(run_id, b"more\n")  # writing to a closed connection tells that it is closed
        time.sleep(0.1)
        with closing(send(server, head)) as again:
            answered = status(again)
    assert answered == 200
    for follower in followers:
        follower.close()


@pytest.mark.parametrize("stream", ["logs/stream", "metrics/stream"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_client_that_vanishes_from_a_quiet_stream_gives_its_place_back(
    server: int, world: World, stream: str, reset: bool
) -> None:
    run_id = world.run(Status.RUNNING)
    head = f"GET /runs/{run_id}/{stream} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    followers = [send(server, head) for _ in range(STREAMS)]
    assert [status(follower) for follower in followers] == [200] * STREAMS
    for follower in followers:
        if reset:
            follower.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        follower.close()
    began = time.monotonic()
    for _ in range(STREAMS):
        while status(again := send(server, head)) == 503:
            again.close()
            assert time.monotonic() - began < 5  # 30 are allowed
            time.sleep(0.1)
        followers.append(again)
    for follower in followers:
        follower.close()


def test_a_client_that_sends_more_while_it_follows_is_still_there(shared: Shared) -> None:
    run_id = shared.world.run(Status.RUNNING)
    head = f"GET /runs/{run_id}/logs/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with closing(send(shared.port, head)) as follower:
        assert status(follower) == 200
        follower.sendall(head)
        time.sleep(0.5)
        shared.world.log(run_id, b"hello\n")
        with follower.makefile("rb") as answer:
            assert b"data: hello\n" in iter(answer.readline, b"")


def test_a_client_that_only_listens_hears_the_stream_to_its_end(shared: Shared) -> None:
    run_id = shared.world.run(Status.RUNNING)
    head = f"GET /runs/{run_id}/logs/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with closing(send(shared.port, head)) as follower:
        follower.shutdown(socket.SHUT_WR)
        assert status(follower) == 200
        time.sleep(0.5)
        shared.world.log(run_id, b"hello\n")
        with follower.makefile("rb") as answer:
            assert b"data: hello\n" in iter(answer.readline, b"")


def test_a_line_arrives_while_the_stream_is_open(shared: Shared) -> None:
    run_id = shared.world.run(Status.RUNNING)
    url = f"http://127.0.0.1:{shared.port}/runs/{run_id}/logs/stream"
    with httpx.stream("GET", url, timeout=10) as response:
        lines = response.iter_lines()
        assert next(lines) == "retry: 2000"
        shared.world.log(run_id, b"hello\n")
        began = time.monotonic()
        assert next(line for line in lines if line.startswith("data")) == "data: hello"
        assert time.monotonic() - began < 1
