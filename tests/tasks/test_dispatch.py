"""Wake-up calls in the broker's lists: one for each job that waits, and again what was lost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest
from sqlalchemy import update

from tasks import housekeeping, process
from trainer_app.core.spec import TrainSpec
from trainer_app.queue import send_all
from trainer_app.settings import Settings
from trainer_app.store import lease, runs, wakeups
from trainer_app.store.tables import JobRow


class QueueRun(Protocol):
    """Queues a run, and returns its id."""

    def __call__(self, priority: int = 0) -> str: ...


@pytest.fixture
def queued(worker: Settings) -> QueueRun:
    """Queues a run, and returns its id."""

    def create(priority: int = 0) -> str:
        spec = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt", priority=priority)
        return runs.create(process.database(), spec, queue="trainer").run_id

    return create


def test_a_call_that_redis_did_not_take_is_sent_with_the_next_pass(queued: QueueRun) -> None:
    run_id = queued()
    due = lease.due(process.database(), job_id=run_id)
    assert not send_all(lambda _wakeup: False, process.database(), due)
    housekeeping.dispatch()

    assert called() == [run_id]


def test_calls_whose_list_somebody_has_made_something_else_of_are_sent_again(
    queued: QueueRun,
) -> None:
    ids = [queued(9), queued(0)]
    assert housekeeping.dispatch()
    [_, other] = lists()
    client = process.redis_client()
    client.delete(other)
    client.set(other, "no list")
    assert housekeeping.dispatch()

    assert set(called()) == set(ids)
    [aside] = client.keys(f"trainer:aside:{other}:*")
    assert client.get(aside) == "no list"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are taken for unanswered at once, as after an hour."""
    monkeypatch.setattr(wakeups, "_FIRST_WAIT", 0.0005)
    monkeypatch.setattr(wakeups, "_LONGEST_WAIT", 0.001)


def passes(number: int = 3) -> None:
    """Passes of housekeeping, each of which finds all calls unanswered for long enough."""
    for _ in range(number):
        time.sleep(0.01)
        assert housekeeping.dispatch()


def lists() -> list[str]:
    return sorted(process.redis_client().scan_iter(match="trainer*", _type="list"))


def called() -> list[str]:
    """The jobs whose calls wait, the next to be taken first."""
    client = process.redis_client()
    calls = [json.loads(call) for name in lists() for call in client.lrange(name, 0, -1)[::-1]]
    return [call["headers"]["argsrepr"].strip("[']") for call in calls]


def take() -> None:
    """Have a worker take the next call, and die with it."""
    [name] = lists()
    assert process.redis_client().rpop(name)


@pytest.mark.usefixtures("impatient")
def test_a_job_that_waits_for_a_busy_worker_is_called_once_however_long(queued: QueueRun) -> None:
    run_id = queued()
    passes(10)
    assert called() == [run_id]


@pytest.mark.usefixtures("impatient")
def test_jobs_of_every_priority_are_called_once_each(queued: Callable[[int], str]) -> None:
    ids = [queued(priority) for priority in range(10)]
    passes()
    assert sorted(called()) == sorted(ids)
    assert len(lists()) == 4


@pytest.mark.usefixtures("impatient")
def test_a_call_that_died_with_its_worker_is_sent_again_while_others_wait(
    queued: QueueRun,
) -> None:
    first, second, third = (queued() for _ in range(3))
    passes()
    take()
    passes()
    assert called() == [second, third, first]
    take()
    take()
    passes()
    assert called() == [first, second, third]


@pytest.mark.usefixtures("impatient")
def test_calls_of_jobs_that_wait_no_longer_hide_none_that_was_lost(queued: QueueRun) -> None:
    lost = queued()
    passes()
    for _ in range(3):
        cancelled = queued()
        passes(1)
        lease.request_cancel(process.database(), cancelled)
    take()
    passes()
    assert called()[3:] == [lost]


@pytest.mark.usefixtures("impatient")
def test_a_call_that_was_lost_on_its_way_is_sent_again_once_those_before_it_are_taken(
    queued: QueueRun,
) -> None:
    first = queued()
    passes(1)
    lost = queued()
    lease.due(process.database())  # by somebody who is killed before it is sent
    passes()
    assert called() == [first]
    take()
    passes()
    assert called() == [first, lost]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("call", ["{", "[]", '{"headers": {}}', '{"headers": null}'])
def test_a_call_that_does_not_say_when_it_was_sent_keeps_no_lost_one_back(
    queued: QueueRun, call: str
) -> None:
    run_id = queued()
    passes(1)
    [name] = lists()
    process.redis_client().delete(name)
    process.redis_client().rpush(name, call)
    passes(1)
    calls = process.redis_client().lrange(name, 0, -1)
    assert [run_id in one for one in calls] == [True, False]


def test_of_many_housekeepers_at_once_one_calls_again(queued: QueueRun) -> None:
    run_id = queued()
    passes(1)
    take()
    with process.database().write() as connection:
        connection.execute(update(JobRow).values(dispatched_at=JobRow.dispatched_at - 61))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(lambda _: housekeeping.dispatch(), range(6)))
    assert called() == [run_id]
