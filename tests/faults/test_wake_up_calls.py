"""Who hears of queued runs: the worker that has time, whatever became of the message."""

from __future__ import annotations

import time

import psutil
import pytest
import redis

from tests.faults.victim import Victim, runs_as
from trainer_app.stack.guard import kill_group


def calls(client: redis.Redis) -> list[bytes]:
    """The lists in which wake-up calls wait; they are gone with the last of them."""
    return list(client.scan_iter("trainer*", _type="list"))


def test_of_two_workers_the_idle_one_takes_all_that_is_queued(victim: Victim) -> None:
    busy = victim.start_run()
    victim.until(busy, runs_as(1), seconds=60)

    with victim.second_worker():
        queued = [victim.start_run(steps=2) for _ in range(3)]
        for run_id in queued:
            victim.until(run_id, lambda run: run["status"] == "completed", seconds=60)

    workers = [str(victim.log(run_id)[0]["worker"]) for run_id in queued]
    assert [worker.partition("@")[0] for worker in workers] == ["train-1"] * 3
    victim.until(busy, runs_as(1), seconds=5)


@pytest.mark.slow
def test_a_message_that_died_with_the_worker_that_popped_it_is_sent_again(victim: Victim) -> None:
    victim.child().suspend()
    run_id = victim.start_run(steps=2)
    with redis.Redis.from_url(victim.stack.state["redis_url"]) as client:
        give_up_at = time.monotonic() + 30
        while calls(client):
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
    assert victim.client.get_run(run_id)["status"] == "queued"

    kill_group(victim.worker().pid)
    killed_at = time.monotonic()

    run = victim.until(run_id, lambda run: run["status"] != "queued", seconds=75)
    assert time.monotonic() - killed_at < 75
    assert run["attempt"] == 1
    victim.until(run_id, lambda run: run["status"] == "completed", seconds=60)


@pytest.mark.slow
def test_a_message_that_comes_ten_times_runs_the_run_once(victim: Victim) -> None:
    busy = victim.start_run()
    victim.until(busy, runs_as(1), seconds=60)
    run_id = victim.start_run(steps=2)
    with redis.Redis.from_url(victim.stack.state["redis_url"]) as client:
        (queue,) = calls(client)
        (message,) = client.lrange(queue, 0, -1)
        client.rpush(queue, *[message] * 9)

        victim.client.cancel_run(busy)
        victim.until(run_id, lambda run: run["status"] == "completed", seconds=60)
        give_up_at = time.monotonic() + 30
        while calls(client):
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
    after = victim.start_run(steps=2)
    victim.until(after, lambda run: run["status"] == "completed", seconds=60)
    assert victim.client.get_run(run_id)["attempt"] == 1
    assert victim.events(run_id).count("started") == 1


@pytest.mark.slow
def test_a_run_that_is_cancelled_while_no_worker_is_up_does_not_start_with_the_next_one(
    victim: Victim,
) -> None:
    supervisor = psutil.Process(victim.stack.process.pid)
    supervisor.suspend()  # or it would start another
    kill_group(victim.worker().pid)
    run_id = victim.start_run(steps=2)
    assert victim.client.cancel_run(run_id)["status"] == "cancellation-requested"
    assert victim.client.get_run(run_id)["status"] == "cancelled"
    supervisor.resume()

    after = victim.start_run(steps=2)
    victim.until(after, lambda run: run["status"] == "completed", seconds=120)
    run = victim.client.get_run(run_id)
    assert (run["status"], run["attempt"]) == ("cancelled", 0)
