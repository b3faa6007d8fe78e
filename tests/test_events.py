"""Events: the contract's order and form, never in the way of the work."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
import redis
from redis.client import PubSub

from tests.conftest import RedisServer
from trainer_app import events
from trainer_app.events import JobEvents, Publisher


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def read_stream(client: redis.Redis) -> list[dict[str, object]]:
    return [json.loads(text) for text in read_texts(client)]


def read_texts(client: redis.Redis) -> list[str]:
    return [str(fields["event"]) for _, fields in client.xrange(events.STREAM) or [] if fields]


def job_events(publisher: Publisher) -> JobEvents:
    return JobEvents(publisher, job_id="run-1", user_id=7, queue_name="trainer")


def test_a_listener_hears_each_event_as_compact_json(client: redis.Redis) -> None:
    listener = PubSub(client.connection_pool, ignore_subscribe_messages=True)
    listener.subscribe(events.CHANNEL)
    listener.get_message(timeout=5)
    publisher = Publisher(client)

    job_events(publisher).started()
    publisher.close()

    message = listener.get_message(timeout=5)
    listener.close()
    assert message is not None
    assert message["data"] == (
        '{"type":"trainer.job.started.v1","job_id":"run-1","user_id":7,'
        '"domain":"trainer","queue":"trainer"}'
    )


def test_a_listener_that_was_away_finds_all_in_the_stream(client: redis.Redis) -> None:
    publisher = Publisher(client)
    job = job_events(publisher)

    job.started()
    job.metrics_config({"model_family": "gpt2", "learning_rate": 0.5})
    job.progress(40, "step 4 of 10")
    job.metrics_progress({"step": 4, "train_loss": 2.0})
    job.completed(result_id="run-1", result_bytes=10)
    job.metrics_completed({"test_loss": 1.0})
    publisher.close()

    found = read_stream(client)
    assert [event["type"] for event in found] == [
        "trainer.job.started.v1",
        "trainer.metrics.config.v1",
        "trainer.job.progress.v1",
        "trainer.metrics.progress.v1",
        "trainer.job.completed.v1",
        "trainer.metrics.completed.v1",
    ]
    assert all(event["job_id"] == "run-1" and event["user_id"] == 7 for event in found)
    assert found[4]["progress"] == 100


def test_progress_is_sent_four_times_a_second_at_most(client: redis.Redis) -> None:
    publisher = Publisher(client)
    job = job_events(publisher)
    began = time.monotonic()

    for step in range(500):
        job.progress(step // 5, "step")
        time.sleep(0.001)
    took = time.monotonic() - began
    publisher.close()

    assert 1 <= len(read_stream(client)) <= took / 0.25 + 1


def test_evaluations_are_told_one_after_the_other_and_not_faster(client: redis.Redis) -> None:
    publisher = Publisher(client)
    job = job_events(publisher)

    for step in range(4):
        job.metrics_progress({"step": step})  # dropped but for the first
        job.metrics_progress({"step": step, "val_loss": 1.0}, evaluation=True)
    publisher.close()

    entries = client.xrange(events.STREAM) or []
    assert [event["step"] for event in read_stream(client)] == [0, 0, 1, 2, 3]
    times = [int(str(name).partition("-")[0]) for name, _ in entries]
    assert all(later - earlier >= 250 for earlier, later in pairwise(times))


def test_of_evaluations_that_come_much_too_fast_the_newest_are_told(client: redis.Redis) -> None:
    publisher = Publisher(client)
    job = job_events(publisher)

    for step in range(200):
        job.metrics_progress({"step": step}, evaluation=False)
        job.metrics_progress({"step": step, "val_loss": 1.0}, evaluation=True)
    job.completed(result_id="run-1", result_bytes=1)
    publisher.close()

    *progress, last = read_stream(client)
    assert len(progress) < 20
    assert [event["step"] for event in progress[-12:]] == list(range(188, 200))
    assert last["type"] == "trainer.job.completed.v1"


def test_what_one_run_holds_back_delays_and_drops_nothing_of_the_next(
    client: redis.Redis,
) -> None:
    publisher = Publisher(client)
    earlier, later = (
        JobEvents(publisher, job_id=name, user_id=0, queue_name="q") for name in ("a", "b")
    )
    for step in range(200):
        earlier.metrics_progress({"step": step, "val_loss": 1.0}, evaluation=True)
    earlier.completed(result_id="a", result_bytes=1)
    began = time.monotonic()

    later.started()
    later.metrics_progress({"step": 1})
    later.metrics_progress({"step": 1, "val_loss": 1.0}, evaluation=True)
    later.completed(result_id="b", result_bytes=1)
    while len(mine := [event for event in read_stream(client) if event["job_id"] == "b"]) < 4:
        assert time.monotonic() - began < 1.5
        time.sleep(0.01)
    publisher.close()

    assert [str(event["type"]).split(".")[1:3] for event in mine] == [
        ["job", "started"],
        ["metrics", "progress"],
        ["metrics", "progress"],
        ["job", "completed"],
    ]
    assert mine[2]["val_loss"] == 1.0
    assert read_stream(client)[-1] == {
        "type": "trainer.job.completed.v1",
        "job_id": "a",
        "user_id": 0,
        "domain": "trainer",
        "queue": "q",
        "result_id": "a",
        "result_bytes": 1,
        "progress": 100,
    }


def test_the_next_attempt_of_a_run_is_told_behind_what_the_one_before_has_left(
    client: redis.Redis,
) -> None:
    publisher = Publisher(client)
    first = job_events(publisher)
    for step in range(4):
        first.metrics_progress({"step": step, "val_loss": 1.0}, evaluation=True)

    job_events(publisher).started()
    publisher.close()

    assert [event.get("step") for event in read_stream(client)] == [0, 1, 2, 3, None]


def test_progress_stays_within_0_and_99(client: redis.Redis) -> None:
    publisher = Publisher(client)

    JobEvents(publisher, job_id="a", user_id=0, queue_name="q").progress(100, "nearly")
    JobEvents(publisher, job_id="b", user_id=0, queue_name="q").progress(-3, "early")
    publisher.close()

    assert [event["progress"] for event in read_stream(client)] == [99, 0]


def test_a_failure_says_whose_it_is(client: redis.Redis) -> None:
    publisher = Publisher(client)

    job_events(publisher).failed("user", "cancelled")
    publisher.close()

    (event,) = read_stream(client)
    assert (event["error_kind"], event["message"]) == ("user", "cancelled")


def test_a_number_that_is_not_finite_becomes_the_largest_one() -> None:
    text = events.encode({"a": float("nan"), "b": float("-inf"), "c": 1.0, "d": 2})
    assert text == '{"a":1.7976931348623157e+308,"b":-1.7976931348623157e+308,"c":1.0,"d":2}'


def test_an_event_that_is_no_json_keeps_none_behind_it_from_being_sent(
    client: redis.Redis,
) -> None:
    publisher = Publisher(client)

    job_events(publisher).metrics_config({"nobody": object()})
    job_events(publisher).started()
    publisher.close()

    assert [event["type"] for event in read_stream(client)] == ["trainer.job.started.v1"]


def test_sending_never_waits_for_a_redis_that_is_away() -> None:
    away = redis.Redis(port=1, socket_connect_timeout=0.2)
    publisher = Publisher(away)
    began = time.monotonic()

    for step in range(2_000):
        job_events(publisher).progress(step, "step")

    assert time.monotonic() - began < 1.0


def test_closing_waits_only_a_little_for_a_redis_that_hangs(
    redis_server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer_app.events._FLUSH_SECONDS", 0.1)
    publisher = Publisher(client)
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(1_100):  # more than are kept
            job_events(publisher).started()
        began = time.monotonic()
        publisher.close()
        took = time.monotonic() - began
    finally:
        redis_server.process.send_signal(signal.SIGCONT)
    monkeypatch.undo()
    publisher.close()

    assert took < 5.0
    assert 1_000 <= len(read_stream(client)) < 1_100
