"""Cancelling what hangs: nothing that a process does or does not do keeps a run alive."""

from __future__ import annotations

import time

import psutil
import pytest

from tests.faults.victim import Victim, has_ended, runs_as


# The lease would run out in the meantime: the cancellation alone is to end it.
@pytest.mark.slow
@pytest.mark.parametrize("further_settings", [{"JOBS__LEASE_SEC": "120"}], indirect=True)
def test_a_cancelled_run_whose_process_is_frozen_is_gone_while_redis_is_down(
    victim: Victim,
) -> None:
    run_id = victim.start_run()
    victim.until(run_id, runs_as(attempt=1), seconds=60)
    child = victim.child()
    broker = victim.stack.state["pids"]["broker"]
    assert broker is not None

    psutil.Process(broker).suspend()
    child.suspend()
    asked_at = time.monotonic()
    victim.client.cancel_run(run_id)
    victim.until(run_id, lambda run: run["status"] == "cancelled", seconds=35)
    assert has_ended(child)
    assert time.monotonic() - asked_at < 35

    psutil.Process(broker).resume()
    after = victim.start_run(steps=2)
    victim.until(after, lambda run: run["status"] == "completed", seconds=75)
