"""Housekeeping: lost leases end, wake-up calls are sent again, old requests are forgotten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks import by_hand, housekeeping, process
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.spec import TrainSpec
from trainer_app.errors import DataNotFound, Unavailable
from trainer_app.log import JobLog, job_log_path
from trainer_app.settings import Settings
from trainer_app.store import lease, pauses, requests, runs, upkeep
from trainer_app.store.database import Database
from trainer_app.store.lease import JobKind, Wakeup
from trainer_app.store.runs import Run
from trainer_app.wishes import Wish, cancelled_key

Sent = Callable[[], list[dict[str, object]]]

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")


@pytest.fixture
def run_id(worker: Settings) -> str:
    return runs.create(process.database(), SPEC, queue="trainer").run_id


def waiting(queue: str) -> int:
    """Messages in a queue: kombu keeps one list for each of its four priority steps."""
    client = process.redis_client()
    return sum(int(client.llen(key)) for key in client.scan_iter(match=f"{queue}*", _type="list"))


def lose_the_worker(run_id: str) -> None:
    claim = lease.claim(process.database(), run_id, "train-0@gone:1", lease_seconds=60)
    assert claim is not None
    lease.expire(process.database(), run_id, owner_prefix="train-0@gone:")


def test_a_queued_run_is_published_once_until_its_wait_is_over(
    worker: Settings, run_id: str
) -> None:
    for _ in range(3):
        housekeeping.dispatch()

    assert waiting("trainer") == 1


def test_all_queued_runs_are_published_again_when_redis_was_wiped(
    worker: Settings, run_id: str
) -> None:
    housekeeping.dispatch()

    process.redis_client().flushall()
    housekeeping.dispatch()

    assert waiting("trainer") == 1


def test_a_queued_run_whose_cancellation_is_set_in_redis_is_cancelled_before_its_turn(
    worker: Settings, run_id: str, sent_events: Sent
) -> None:
    other = runs.create(process.database(), SPEC, queue="trainer").run_id
    process.redis_client().set(cancelled_key(run_id), "1")
    process.redis_client().set(cancelled_key(other), "0")

    for _ in range(2):
        by_hand.heed_queued()

    run = runs.get(process.database(), run_id)
    assert (run.status, run.message) == ("cancelled", "cancelled before it started")
    assert runs.get(process.database(), other).status == "queued"
    assert process.redis_client().get(cancelled_key(run_id)) is None
    [event] = sent_events()
    assert (event["job_id"], event["error_kind"], event["message"]) == (run_id, "user", "cancelled")


def test_a_paused_run_whose_cancellation_is_set_in_redis_is_cancelled(
    worker: Settings, run_id: str
) -> None:
    pauses.pause(process.database(), run_id)
    process.redis_client().set(cancelled_key(run_id), "1")

    by_hand.heed_queued()

    run = runs.get(process.database(), run_id)
    assert (run.status, run.paused) == ("cancelled", False)


def test_of_several_that_see_a_cancellation_one_heeds_it(worker: Settings, run_id: str) -> None:
    by_hand._cancel(run_id)  # it is gone by now

    assert runs.get(process.database(), run_id).status == "queued"


def test_a_cancellation_in_redis_outlives_a_database_that_is_away(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise Unavailable("the database is locked")

    process.redis_client().set(cancelled_key(run_id), "1")
    with monkeypatch.context() as patch:
        patch.setattr(lease, "request_cancel", away)
        with pytest.raises(Unavailable):
            by_hand.heed_queued()
    assert process.redis_client().get(cancelled_key(run_id)) == "1"

    by_hand.heed_queued()

    assert runs.get(process.database(), run_id).status == "cancelled"


def test_a_cancellation_in_redis_outlives_whoever_is_killed_while_heeding_it(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Nothing of the process's own runs after it."""

    def be_killed(*_: object, **__: object) -> None:
        raise Killed

    process.redis_client().set(cancelled_key(run_id), "1")
    with monkeypatch.context() as patch:
        patch.setattr(lease, "request_cancel", be_killed)
        with pytest.raises(Killed):
            by_hand.heed_queued()

    by_hand.heed_queued()

    assert runs.get(process.database(), run_id).status == "cancelled"
    assert process.redis_client().get(cancelled_key(run_id)) is None


def test_a_run_that_is_resumed_while_its_cancellation_is_being_heeded_goes_on(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = runs.get

    def get_and_let_it_be_resumed(database: Database, named: str) -> Run:
        found = get(database, named)
        pauses.resume(database, named, before=lambda: forgotten.append(forget(named)))
        return found

    forget, forgotten = process.queue().forget_cancel, list[Wish | None]()
    pauses.pause(process.database(), run_id)
    process.redis_client().set(cancelled_key(run_id), "1")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "get", get_and_let_it_be_resumed)
        by_hand.heed([run_id])

    run = runs.get(process.database(), run_id)
    assert (run.status, run.paused, run.cancel_requested) == ("queued", False, False)
    assert forgotten == [Wish()]


def test_nothing_is_marked_as_published_while_redis_is_away(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS__URL", "redis://127.0.0.1:1/0")
    process.settings.cache_clear()
    process.redis_client.cache_clear()

    housekeeping.dispatch()

    assert [wakeup.job_id for wakeup in lease.due(process.database())] == [run_id]


@contextmanager
def sending_by(queue: object) -> Iterator[None]:
    """Lets something else send the wake-up calls for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "queue", lambda: queue)
        yield


class Forgetful:
    """Sends wake-up calls, and loses them all with the rest of Redis once one was sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def publish(self, wakeup: Wakeup) -> bool:
        self.sent.append(wakeup.job_id)
        if len(self.sent) == 1:
            process.redis_client().flushall()
        return True


def test_redis_is_wiped_while_all_that_is_queued_is_sent_and_it_is_sent_again(
    worker: Settings, run_id: str
) -> None:
    queue = Forgetful()

    with sending_by(queue):
        for _ in range(3):
            housekeeping.dispatch()

    assert queue.sent == [run_id] * 2


def test_redis_is_wiped_while_one_that_is_due_is_sent_and_it_is_sent_again(
    worker: Settings,
) -> None:
    housekeeping.dispatch()  # there is nothing to send
    run_id = runs.create(process.database(), SPEC, queue="trainer").run_id
    queue = Forgetful()

    with sending_by(queue):
        for _ in range(3):
            housekeeping.dispatch()

    assert queue.sent == [run_id] * 2


def test_whoever_is_killed_half_way_leaves_the_rest_of_what_was_lost_to_the_next_pass(
    worker: Settings, run_id: str
) -> None:
    class Killed(Exception):
        pass

    class Deadly:
        def publish(self, wakeup: Wakeup) -> bool:
            raise Killed

    with sending_by(Deadly()), pytest.raises(Killed):
        housekeeping.dispatch()
    housekeeping.dispatch()

    assert waiting("trainer") == 1


def test_redis_fails_at_the_second_of_many_and_the_rest_stays_due_without_being_tried(
    worker: Settings, run_id: str
) -> None:
    ids = [run_id, *(runs.create(process.database(), SPEC, queue="trainer").run_id for _ in "abc")]
    tried: list[str] = []

    class Failing:
        def publish(self, wakeup: Wakeup) -> bool:
            tried.append(wakeup.job_id)
            return len(tried) == 1

    process.redis_client().set("trainer:sentinel", "1")

    with sending_by(Failing()):
        housekeeping.dispatch()

    assert tried == ids[:2]
    assert [wakeup.job_id for wakeup in lease.due(process.database())] == ids[1:]


def test_a_run_whose_worker_was_lost_is_queued_again_and_says_so(
    worker: Settings, run_id: str
) -> None:
    lose_the_worker(run_id)

    housekeeping.reap()

    run = runs.get(process.database(), run_id)
    assert run.status == "queued"
    assert run.message.startswith("attempt 1: worker lost")
    log = Path(worker.paths.logs, f"{run_id}.jsonl").read_text()
    assert json.loads(log)["event"] == run.message


def test_a_run_that_loses_every_worker_fails_and_the_bot_hears_of_it(
    worker: Settings,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    sent_events: Sent,
) -> None:
    monkeypatch.setenv("JOBS__MAX_CRASHES", "1")
    process.settings.cache_clear()
    lose_the_worker(run_id)

    housekeeping.reap()

    run = runs.get(process.database(), run_id)
    assert (run.status, run.error_code) == ("failed", "WORKER_LOST")
    (event,) = sent_events()
    assert (event["type"], event["error_kind"]) == ("trainer.job.failed.v1", "system")


def test_a_database_that_goes_away_while_losses_are_explained_silences_none_of_them(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch, sent_events: Sent
) -> None:
    monkeypatch.setenv("JOBS__MAX_CRASHES", "1")
    process.settings.cache_clear()
    database = process.database()
    lost = [run_id, runs.create(database, runs.get(database, run_id).spec, queue="t").run_id]
    for one in lost:
        log = JobLog(job_log_path(worker, one), run_id=one)
        log.info("step 3")
        log.close()
        lose_the_worker(one)

    def explain_nothing(*_: object) -> None:
        raise Unavailable("the database is away")

    monkeypatch.setattr(upkeep, "explain", explain_nothing)
    housekeeping.reap()

    assert {event["job_id"] for event in sent_events()} == set(lost)


def test_a_cancelled_run_whose_worker_was_lost_is_told_of_as_cancelled(
    run_id: str, sent_events: Sent
) -> None:
    lose_the_worker(run_id)
    lease.request_cancel(process.database(), run_id)
    housekeeping.reap()

    [event] = sent_events()
    assert (event["error_kind"], event["message"]) == ("user", "cancelled")


def test_the_result_of_an_old_request_is_forgotten(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY__RESULT_TTL_SEC", "60")
    process.settings.cache_clear()
    spec = GenerateSpec(prompt_text="a").to_json()
    request = requests.create(
        process.database(), JobKind.GENERATE, run_id, spec, queue="q", user_id=0
    )
    claim = lease.claim(process.database(), request.request_id, "a:1", lease_seconds=60)
    assert claim is not None
    lease.finish(process.database(), claim, "completed", result="{}")

    housekeeping.purge()
    requests.get(process.database(), JobKind.GENERATE, run_id, request.request_id)
    requests.purge(process.database(), completed_seconds=-1, failed_seconds=-1)

    with pytest.raises(DataNotFound):
        requests.get(process.database(), JobKind.GENERATE, run_id, request.request_id)


def test_the_loop_waits_for_a_database_that_is_away(
    worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE__URL", "postgresql://nobody@127.0.0.1:1/none")
    process.settings.cache_clear()
    process.database.cache_clear()
    stop = threading.Event()
    loop = threading.Thread(target=housekeeping.run, args=(stop,))

    loop.start()
    time.sleep(0.5)
    assert loop.is_alive()
    stop.set()
    loop.join(20)

    assert not loop.is_alive()


def test_a_duty_that_fails_costs_the_others_nothing(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("nobody thought of this")

    stop, purged = threading.Event(), threading.Event()
    monkeypatch.setattr(housekeeping, "dispatch", fail)
    monkeypatch.setattr(housekeeping, "purge", purged.set)
    loop = threading.Thread(target=housekeeping.run, args=(stop,))

    loop.start()
    assert purged.wait(10)
    stop.set()
    loop.join(20)

    assert not loop.is_alive()


def test_the_process_dispatches_and_ends_on_sigterm(worker: Settings, run_id: str) -> None:
    housekeeper = subprocess.Popen(
        [sys.executable, "-m", "tasks.housekeeping"], env=os.environ, stderr=subprocess.DEVNULL
    )
    give_up_at = time.monotonic() + 30
    while waiting("trainer") == 0:
        assert time.monotonic() < give_up_at
        time.sleep(0.1)

    housekeeper.send_signal(signal.SIGTERM)

    assert housekeeper.wait(10) == 0


STOPPED_WHILE_IT_WAITS = """
import os, signal, threading
from tasks import housekeeping

wait = threading.Condition.wait

def be_stopped_and_wait(condition, timeout=None):
    if timeout == housekeeping._PASS_SECONDS:
        os.kill(os.getpid(), signal.SIGTERM)  # with the lock of the event held
    return wait(condition, timeout)

threading.Condition.wait = be_stopped_and_wait
housekeeping.main()
"""


@pytest.mark.usefixtures("worker")
def test_a_stop_that_comes_while_the_process_begins_to_wait_is_no_deadlock() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_WHILE_IT_WAITS], capture_output=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
