"""A broker that loses its clients, its data and its voice costs no run."""

from __future__ import annotations

import time

import psutil
import pytest
import redis

from tests.faults.victim import Victim, runs_as


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_broker_that_is_cut_off_wiped_and_hung_costs_no_run(victim: Victim) -> None:
    first = victim.start_run()
    queued = [victim.start_run(steps=2) for _ in range(5)]
    victim.until(first, runs_as(attempt=1), seconds=60)
    with redis.Redis.from_url(victim.stack.state["redis_url"]) as client:
        client.client_kill_filter(_type="normal", skipme=True)
        client.client_kill_filter(_type="pubsub", skipme=True)
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
