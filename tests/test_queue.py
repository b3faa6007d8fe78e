"""Wake-up calls, and what is known of workers, while Redis is away or switched off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import pytest
import redis
import structlog
from structlog.typing import EventDict

from trainer_app.errors import Unavailable
from trainer_app.queue import WORKER_KEY, Queue
from trainer_app.settings import Settings
from trainer_app.store.lease import JobKind, Wakeup

WAKEUP = Wakeup(job_id="run-1", kind=JobKind.TRAIN, queue="trainer", priority=5, dispatched_at=1.5)


@pytest.fixture
def away(settings: Settings) -> Iterator[Queue]:
    redis = replace(settings.redis, url="redis://127.0.0.1:1/0", timeout_seconds=0.2)
    with closing(Queue(replace(settings, redis=redis))) as queue:
        yield queue


def told(lines: Sequence[EventDict]) -> list[tuple[object, object]]:
    return [(line["event"], line.get("job_id")) for line in lines]


def test_a_wake_up_call_that_cannot_be_sent_is_no_error(away: Queue) -> None:
    with structlog.testing.capture_logs() as lines:
        assert not away.publish(WAKEUP)

    # Among the lines may be those of threads that other tests have left.
    assert ("a wake-up call was not sent", "run-1") in told(lines)


def test_where_redis_is_switched_off_no_wake_up_call_is_tried(settings: Settings) -> None:
    off = replace(settings.redis, url="redis://127.0.0.1:1/0", enabled=False)
    with (
        closing(Queue(replace(settings, redis=off))) as queue,
        structlog.testing.capture_logs() as lines,
    ):
        assert not queue.publish(WAKEUP)

    assert ("a wake-up call was not sent", "run-1") not in told(lines)


def test_a_redis_that_is_away_is_told(away: Queue) -> None:
    for ask in (away.ping, away.workers, away.training_queues, lambda: away.forget_cancel("run-1")):
        with pytest.raises(Unavailable, match="Redis does not answer"):
            ask()


@pytest.mark.parametrize(
    "told",
    [
        "{",
        "",
        "null",
        "[]",
        "1",
        "{}",
        '{"queues": 1}',
        '{"queues": [], "memory_bytes": 5}',
        '{"queues": ["trainer"], "memory_bytes": {"cpu": "much"}}',
        '{"queues": ["trainer"], "memory_bytes": {"cpu": Infinity}}',
        "[" * 100_000,
    ],
    ids=lambda told: told[:20],
)
def test_what_cannot_be_read_of_a_worker_hides_no_other(
    settings: Settings, redis_url: str, told: str
) -> None:
    with (
        closing(Queue(replace(settings, redis=replace(settings.redis, url=redis_url)))) as queue,
        redis.Redis.from_url(redis_url) as client,
    ):
        client.set(f"{WORKER_KEY}strange", told, ex=5)
        client.set(f"{WORKER_KEY}train-0@here", '{"queues": ["trainer"]}', ex=5)
        workers = queue.workers()
        client.delete(f"{WORKER_KEY}strange", f"{WORKER_KEY}train-0@here")

    assert [(worker.name, worker.queues) for worker in workers] == [("train-0@here", ("trainer",))]
