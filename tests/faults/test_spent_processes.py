"""A worker's process in which nothing works any more, and what becomes of the jobs that it has."""

from __future__ import annotations

import resource

import psutil
import pytest

from tests.faults.outcomes import has_completed
from tests.faults.victim import Victim, assert_one_at_a_time, child_of, has_ended, runs_as

_RETRY_SOON = {"CELERY__RETRY_INTERVALS_SEC": "1", "CELERY__RETRY_MAX": "1"}


def leak_descriptors(child: psutil.Process) -> None:
    """As a leak would: whatever it opens from now on is one too many."""
    _, hard = resource.prlimit(child.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (12, hard))


@pytest.mark.parametrize("further_settings", [_RETRY_SOON], indirect=True)
def test_what_fails_in_a_process_that_leaks_is_done_by_a_fresh_one(victim: Victim) -> None:
    model = victim.start_run(steps=2)
    victim.until(model, has_completed, seconds=60)
    run_id = victim.start_run()
    saved = victim.checkpoint(run_id)
    child = victim.child()
    waiting = victim.start_run(steps=2)

    leak_descriptors(child)
    # Its message is not lost on the process that ends: it would be sent again after 60 s.
    run = victim.until(waiting, has_completed, seconds=50)
    assert run["attempt"] == 1
    victim.until(run_id, runs_as(attempt=2, beyond=saved), seconds=60)

    assert has_ended(child)
    assert_one_at_a_time(victim.log(run_id))
    failed = victim.told(run_id, lambda entry: "attempt 1 failed: " in str(entry["event"]))
    assert "Too many open files" in str(failed["event"])
    assert not any("worker lost" in event for event in victim.events(run_id))
    workers = [str(entry["worker"]) for entry in victim.log(run_id) if "worker" in entry]
    assert workers[0].endswith(f":{child.pid}")
    assert workers[1].endswith(f":{victim.child().pid}")

    # What is asked of a model, too, by the worker of such jobs.
    [inference] = victim.stack.state["pids"]["inference"]
    other = child_of(psutil.Process(inference))
    leak_descriptors(other)
    generated = victim.client.generate(model, {"prompt_text": "import", "max_new_tokens": 4})
    assert generated["status"] == "completed", generated
    assert generated["outputs"]
    assert has_ended(other)
