"""Jobs whose queue no worker takes from say so."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Protocol

import pytest

from tasks import housekeeping, process
from tasks.unserved import MISSING_SECONDS, Unserved
from tests.tasks.claims import claimed
from trainer_app.core.spec import TrainSpec
from trainer_app.queue import WORKER_KEY, LiveWorker
from trainer_app.settings import Settings
from trainer_app.store import lease, pauses, runs
from trainer_app.store.lease import Wakeup

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")
PINNED = "trainer.gone%.gpu0"
WAITS = f"waits for a worker of queue {PINNED}, of which there is none"


class Starts(Protocol):
    """Starts a worker that takes from these queues."""

    def __call__(self, *queues: str) -> None: ...


class Watched:
    """Housekeeping's looks at the queues, at times that the test makes pass."""

    def __init__(self) -> None:
        self._now = 1_000.0
        self._unserved = Unserved(lambda: self._now)

    def after(self, seconds: float, *, redis_answers: bool = True) -> None:
        self._now += seconds
        self._unserved.redis_answers = redis_answers
        self._unserved.one_pass()

    def until_it_is_said(self) -> None:
        self.after(0)
        self.after(MISSING_SECONDS)


@pytest.fixture
def watched(worker: Settings) -> Watched:
    return Watched()


@pytest.fixture
def run_id(worker: Settings) -> str:
    return runs.create(process.database(), SPEC, queue=PINNED).run_id


@pytest.fixture
def starts(worker: Settings) -> Iterator[Starts]:
    key = f"{WORKER_KEY}train-0@here"

    def start(*queues: str) -> None:
        process.redis_client().set(key, json.dumps({"queues": queues}), ex=20)

    yield start
    process.redis_client().delete(key)


def message(run_id: str) -> str:
    return runs.get(process.database(), run_id).message


def test_a_run_says_that_there_is_no_worker_of_its_queue_once_it_is_missing_for_long(
    watched: Watched, run_id: str, starts: Starts
) -> None:
    lease.hand_back(
        process.database(), claimed(run_id, "train-0@gone:1"), message="handed back", cause="stop"
    )
    starts("trainer", "trainer.here.gpu0")
    shared = runs.create(process.database(), SPEC, queue="trainer").run_id

    watched.after(0)
    watched.after(MISSING_SECONDS - 1)
    assert message(run_id) == "handed back"
    watched.after(1)  # too soon for another look
    assert message(run_id) == "handed back"
    watched.after(10)

    assert message(run_id) == WAITS
    assert message(shared) == ""
    assert claimed(run_id, "train-0@gone:2").cause == "stop"
    assert message(run_id) == ""


def test_what_a_run_has_said_is_taken_back_when_its_worker_is_there_again(
    watched: Watched, run_id: str, starts: Starts
) -> None:
    watched.until_it_is_said()
    assert message(run_id) == WAITS

    starts("trainer", PINNED)
    watched.after(10)
    assert message(run_id) == ""

    process.redis_client().delete(f"{WORKER_KEY}train-0@here")
    watched.after(MISSING_SECONDS)  # it was there until now
    assert message(run_id) == ""
    watched.after(MISSING_SECONDS)
    assert message(run_id) == WAITS


def test_a_run_that_is_paused_or_put_off_waits_for_no_worker(watched: Watched, run_id: str) -> None:
    put_off = runs.create(process.database(), SPEC, queue=PINNED).run_id
    claim = claimed(put_off, "train-0@gone:1")
    lease.retry_later(process.database(), claim, delay_seconds=900, message="again later")
    watched.until_it_is_said()
    assert message(run_id) == WAITS

    pauses.pause(process.database(), run_id)
    watched.after(10)

    assert message(run_id) == "paused before it started"
    assert message(put_off) == "again later"


def test_a_pause_of_a_run_that_has_begun_puts_an_end_to_its_wait(
    watched: Watched, run_id: str
) -> None:
    lease.hand_back(process.database(), claimed(run_id, "train-0@gone:1"), message="handed back")
    watched.until_it_is_said()
    pauses.pause(process.database(), run_id)

    watched.after(10)
    assert message(run_id) == "paused; before that: handed back"

    pauses.resume(process.database(), run_id)
    assert message(run_id) == "resumed"
    watched.after(MISSING_SECONDS)
    watched.after(MISSING_SECONDS)
    assert message(run_id) == WAITS


def test_while_redis_is_away_nobody_counts_as_missing(
    watched: Watched, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.after(0)
    with monkeypatch.context() as away:
        away.setenv("REDIS__URL", "redis://127.0.0.1:1/0")
        for made in (process.settings, process.queue):
            made.cache_clear()
        watched.after(60)
        process.queue().close()
    for made in (process.settings, process.queue):
        made.cache_clear()

    watched.after(60)
    assert message(run_id) == ""
    watched.after(MISSING_SECONDS)
    assert message(run_id) == WAITS


class Hanging:
    """A Redis that takes no message; nobody is to wait for it once more to ask for workers."""

    def __init__(self) -> None:
        self.asked = 0
        self.refused = threading.Event()

    def publish(self, _wakeup: Wakeup) -> bool:
        self.refused.set()
        return False

    def workers(self) -> list[LiveWorker]:
        self.asked += 1
        return []


def test_a_pass_that_has_found_redis_away_does_not_wait_for_it_to_tell_of_workers(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, stop, over = Hanging(), threading.Event(), threading.Event()
    monkeypatch.setattr(housekeeping, "purge", over.set)  # the last duty
    loop = threading.Thread(target=housekeeping.run, args=(stop,))
    with monkeypatch.context() as patch:
        patch.setattr(process, "queue", lambda: queue)
        loop.start()
        assert over.wait(10)
        stop.set()
        loop.join(20)

    assert queue.refused.is_set()
    assert queue.asked == 0


def test_a_pass_without_redis_is_no_sign_that_a_worker_is_missing(
    watched: Watched, run_id: str
) -> None:
    watched.after(0)
    watched.after(MISSING_SECONDS, redis_answers=False)
    watched.after(10)
    assert message(run_id) == ""

    watched.after(MISSING_SECONDS)
    assert message(run_id) == WAITS
