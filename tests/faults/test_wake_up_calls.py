"""Who hears of queued runs: the worker that has time, whatever became of the message."""

from __future__ import annotations

import time

import pytest
import redis

from tests.faults.victim import Victim, runs_as
from trainer_app.stack.guard import kill_group


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
        while client.exists("trainer"):  # the list of messages is gone with the last of them
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
    assert victim.client.get_run(run_id)["status"] == "queued"

    kill_group(victim.worker().pid)
    killed_at = time.monotonic()

    run = victim.until(run_id, lambda run: run["status"] != "queued", seconds=75)
    assert time.monotonic() - killed_at < 75
    assert run["attempt"] == 1
    victim.until(run_id, lambda run: run["status"] == "completed", seconds=60)
