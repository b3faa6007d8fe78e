"""A broker that loses its clients, its data and its voice costs no run."""

from __future__ import annotations

import time

import psutil
import pytest
import redis

from tests.faults.victim import Victim, assert_one_at_a_time, runs_as


def _cut_off_all_clients(client: redis.Redis) -> None:
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_kill_filter(_type="pubsub", skipme=True)


@pytest.mark.slow
def test_a_run_whose_connections_are_cut_goes_on_and_is_cancelled_within_five_seconds(
    victim: Victim,
) -> None:
    run_id = victim.start_run()
    run = victim.until(run_id, runs_as(attempt=1), seconds=60)
    with redis.Redis.from_url(victim.stack.state["redis_url"]) as client:
        for _ in range(3):
            _cut_off_all_clients(client)
            run = victim.until(run_id, runs_as(1, beyond=(run["step"] or 0) + 5), seconds=30)

    victim.client.cancel_run(run_id)
    victim.until(run_id, lambda run: run["status"] == "cancelled", seconds=5)
    assert_one_at_a_time(victim.log(run_id))
    after = victim.start_run(steps=2)
    victim.until(after, lambda run: run["status"] == "completed", seconds=60)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_broker_that_is_cut_off_wiped_and_hung_costs_no_run(victim: Victim) -> None:
    first = victim.start_run()
    queued = [victim.start_run(steps=2) for _ in range(5)]
    victim.until(first, runs_as(attempt=1), seconds=60)
    with redis.Redis.from_url(victim.stack.state["redis_url"]) as client:
        _cut_off_all_clients(client)
        client.flushall()
    step = victim.client.get_run(first)["step"] or 0
    victim.until(first, runs_as(attempt=1, beyond=step + 5), seconds=30)

    broker = victim.stack.state["pids"]["broker"]
    assert broker is not None
    psutil.Process(broker).suspend()
    asked_at = time.monotonic()
    victim.client.cancel_run(first)
    victim.until(first, lambda run: run["status"] == "cancelled", seconds=15)
    assert time.monotonic() - asked_at < 15
    psutil.Process(broker).resume()

    give_up_at = time.monotonic() + 75
    for run_id in queued:
        left = give_up_at - time.monotonic()
        run = victim.until(run_id, lambda run: run["status"] == "completed", seconds=left)
        assert run["attempt"] == 1
