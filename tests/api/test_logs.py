"""Reading and following the logs of runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from trainer_app.api import streams
from trainer_app.api.streams import Followers, event
from trainer_app.log import JobLog
from trainer_app.settings import Settings
from trainer_app.store import lease
from trainer_app.store.database import Database
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World

LINES = b'{"event": "one"}\n{"event": "two"}\n{"event": "three"}\n'
Make = Callable[[Settings], FlaskClient]


def parsed(text: str) -> list[tuple[str, str]]:
    """The events of a stream, as a browser would see them: id and data."""
    found = []
    for block in text.split("\n\n"):
        fields = [line.partition(": ")[::2] for line in block.split("\n") if line]
        data = [value for name, value in fields if name == "data"]
        if data:
            found.append((dict(fields)["id"], "\n".join(data)))
    return found


def stream(client: FlaskClient, run_id: str, query: str = "", **headers: str) -> TestResponse:
    return client.get(f"/runs/{run_id}/logs/stream{query}", headers=list(headers.items()))


@contextmanager
def later(seconds: float, *actions: Callable[[], object]) -> Iterator[None]:
    """Do things one after the other in another thread while a stream is read."""

    def act() -> None:
        for action in actions:
            time.sleep(seconds)
            action()

    thread = threading.Thread(target=act)
    thread.start()
    yield
    thread.join(10)


def test_the_log_is_read_as_it_is(client: FlaskClient, world: World) -> None:
    run_id = world.run()
    world.log(run_id, LINES)
    response = client.get(f"/runs/{run_id}/logs")
    assert response.mimetype == "text/plain"
    assert response.data == LINES


def test_the_log_is_read_from_its_end(client: FlaskClient, world: World) -> None:
    run_id = world.run()
    world.log(run_id, LINES)
    assert client.get(f"/runs/{run_id}/logs?tail=1").data == b'{"event": "three"}\n'


def test_a_run_that_has_told_nothing_has_an_empty_log(client: FlaskClient, world: World) -> None:
    response = client.get(f"/runs/{world.run()}/logs")
    assert (response.status_code, response.data) == (200, b"")


@pytest.mark.parametrize("path", ["logs", "logs/stream"])
@pytest.mark.parametrize(
    "query",
    ["tail=0", "tail=-1", "tail=10001", "tail=1000000000", "tail=1.9", "tail=true", "tial=5"],
)
def test_a_tail_that_cannot_be_is_refused(
    client: FlaskClient, world: World, path: str, query: str
) -> None:
    response = client.get(f"/runs/{world.run(Status.FAILED)}/{path}?{query}")
    assert response.status_code == 422


@pytest.mark.parametrize("follow", ["1", "yes", "True", ""])
def test_follow_is_true_or_false(client: FlaskClient, world: World, follow: str) -> None:
    assert stream(client, world.run(Status.FAILED), f"?follow={follow}").status_code == 422


def test_each_event_is_a_line_with_the_offset_behind_it(client: FlaskClient, world: World) -> None:
    run_id = world.run(Status.COMPLETED)
    world.log(run_id, LINES)
    response = stream(client, run_id)
    assert response.mimetype == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store"
    assert parsed(response.text) == [
        ("17", '{"event": "one"}'),
        ("34", '{"event": "two"}'),
        ("53", '{"event": "three"}'),
    ]


def test_a_stream_starts_at_the_tail(client: FlaskClient, world: World) -> None:
    run_id = world.run(Status.COMPLETED)
    world.log(run_id, LINES)
    assert [data for _, data in parsed(stream(client, run_id, "?tail=1").text)] == [
        '{"event": "three"}'
    ]


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_stream_goes_on_without_a_gap(client: FlaskClient, world: World, cut: int) -> None:
    run_id = world.run(Status.COMPLETED)
    world.log(run_id, LINES)
    whole = parsed(stream(client, run_id).text)
    last = whole[cut - 1][0] if cut else "0"
    assert parsed(stream(client, run_id, **{"Last-Event-ID": last}).text) == whole[cut:]


@pytest.mark.parametrize(
    "given_id",
    ["x", "-1", "1.5", "1e1", "+17", "9" * 30, "1 2", "\u00b2", "1", "18", "54", "9" * 18],
)
def test_an_id_that_was_never_sent_is_refused(
    client: FlaskClient, world: World, given_id: str
) -> None:
    run_id = world.run(Status.COMPLETED)
    world.log(run_id, LINES)
    response = stream(client, run_id, **{"Last-Event-ID": given_id})
    assert response.status_code == 422
    assert response.get_json()["details"][0]["field"] == "Last-Event-ID"


def test_without_following_a_stream_ends_at_once(client: FlaskClient, world: World) -> None:
    run_id = world.run(Status.RUNNING)
    world.log(run_id, LINES)
    assert len(parsed(stream(client, run_id, "?follow=false").text)) == 3


def test_a_stream_follows_a_run_to_its_last_line(client: FlaskClient, world: World) -> None:
    run_id = world.run()
    claim = world.claim(run_id)
    world.log(run_id, b"one\n")
    with later(
        0.2,
        lambda: world.log(run_id, b"two\nthr"),
        lambda: world.log(run_id, b"ee\n"),
        lambda: lease.finish(world.database, claim, Status.COMPLETED),
        lambda: world.log(run_id, b"the end"),  # written after the status
    ):
        events = parsed(stream(client, run_id).text)
    assert [data for _, data in events] == ["one", "two", "three", "the end"]
    assert [int(at) for at, _ in events] == [4, 8, 14, 21]


def test_a_stream_waits_for_a_run_that_has_not_started(client: FlaskClient, world: World) -> None:
    run_id = world.run()
    with later(
        0.2,
        lambda: world.log(run_id, b"hello\n"),
        lambda: lease.request_cancel(world.database, run_id),
    ):
        assert [data for _, data in parsed(stream(client, run_id).text)] == ["hello"]


def test_a_quiet_stream_gives_signs_of_life(
    client: FlaskClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "COMMENT_SECONDS", 0.2)
    run_id = world.run()
    with later(0.8, lambda: lease.request_cancel(world.database, run_id)):
        assert stream(client, run_id).text.count("\n: \n\n") >= 2


def test_a_stream_goes_on_while_redis_is_away(world: World, make_client: Make) -> None:
    away = replace(world.settings.redis, url="redis://127.0.0.1:1/0")
    client = make_client(replace(world.settings, redis=away))
    run_id = world.run(Status.RUNNING)
    world.log(run_id, b"one\n")
    response = client.get(f"/runs/{run_id}/logs/stream", buffered=False)
    chunks = response.iter_encoded()
    assert b"retry" in next(chunks)
    assert b"one" in next(chunks)
    with later(0.2, lambda: world.log(run_id, b"two\n")):
        assert b"two" in next(chunks)
    response.close()


def test_while_the_database_is_away_no_run_is_over(tmp_path: Path) -> None:
    assert not Followers(Database(f"sqlite:///{tmp_path}"), threads=64).is_over("run-any")


def test_streams_leave_threads_for_other_requests(world: World, make_client: Make) -> None:
    client = make_client(replace(world.settings, api=replace(world.settings.api, threads=10)))
    run_id = world.run(Status.RUNNING)
    path = f"/runs/{run_id}/logs/stream"
    open_streams = [client.get(path, buffered=False) for _ in range(2)]
    refused = client.get(path)
    assert (refused.status_code, refused.get_json()["code"]) == (503, "UNAVAILABLE")
    assert refused.headers["Retry-After"]
    open_streams[0].close()
    again = client.get(path, buffered=False)
    assert again.status_code == 200
    for response in [*open_streams, again]:
        response.close()


def test_a_head_request_holds_no_stream(world: World, make_client: Make) -> None:
    client = make_client(replace(world.settings, api=replace(world.settings.api, threads=8)))
    path = f"/runs/{world.run(Status.RUNNING)}/logs/stream"
    assert [client.head(path).status_code for _ in range(3)] == [200, 200, 200]


def test_a_newline_in_a_message_stays_inside_its_event(client: FlaskClient, world: World) -> None:
    run_id = world.run(Status.COMPLETED)
    log = JobLog(world.settings.paths.logs / f"{run_id}.jsonl")
    log.info("a\nb\r\n\nid: 999\ndata: forged")
    log.close()
    ((_, data),) = parsed(stream(client, run_id).text)
    assert json.loads(data)["event"] == "a\nb\r\n\nid: 999\ndata: forged"


@given(data=st.text().map(lambda text: text.replace("\r\n", "\n").replace("\r", "\n")))
def test_an_event_gives_back_its_data(data: str) -> None:
    ((given_id, found),) = parsed(event(7, data))
    assert (given_id, found) == ("7", data)


def test_a_carriage_return_does_not_end_an_event() -> None:
    assert event(1, "a\rb\r\nc") == "id: 1\ndata: a\ndata: b\ndata: c\n\n"


def test_the_database_is_asked_once_a_second_for_all_followers(world: World) -> None:
    followers = Followers(world.database, threads=64)
    run_id = world.run()
    assert not followers.is_over(run_id)
    lease.request_cancel(world.database, run_id)
    assert not followers.is_over(run_id)
    time.sleep(1.1)
    assert followers.is_over(run_id)
