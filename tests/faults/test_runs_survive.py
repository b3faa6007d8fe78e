"""What may die while a run goes on, and what becomes of the run."""

from __future__ import annotations

import re
import time
from contextlib import suppress

import psutil
import pytest

from tests.faults.victim import ENVIRONMENT, Victim, assert_one_at_a_time, children_of, runs_as


def attempts_first_step(victim: Victim, run_id: str, attempt: int) -> int:
    """The step that an attempt began at, once the run's log tells it."""
    entry = victim.told(run_id, lambda one: one["attempt"] == attempt and "first_step" in one)
    return int(str(entry["first_step"]))


def waits_for_work(victim: Victim, spare: psutil.Process) -> bool:
    """Whether a process has imported all that a job needs."""
    logs = victim.stack.data_root / "run" / "logs"
    lines = (logs / "worker-0.log").read_text().splitlines()
    return any(
        "a process waits for work" in line and re.search(rf"\b{spare.pid}\b", line)
        for line in lines
    )


def files_of(victim: Victim, run_id: str, attempt: int) -> set[tuple[str, int, int]]:
    """Names, sizes and times of what an attempt has written into the run's folder."""
    found = set()
    for path in (victim.stack.data_root / "runs" / run_id).rglob("*"):
        with suppress(FileNotFoundError):  # removed in the meantime
            if re.search(rf"(attempt|curve|staging)-{attempt}\b", str(path)) and path.is_file():
                found.add((str(path), path.stat().st_size, path.stat().st_mtime_ns))
    return found


@pytest.mark.parametrize("further_settings", [{"JOBS__SPARE_SEC": "1"}], indirect=True)
def test_a_run_whose_process_is_killed_goes_on_within_10_s_in_the_spare_one(
    victim: Victim,
) -> None:
    run_id = victim.start_run()
    child, spare = children_of(victim.worker(), at_least=2)
    victim.until(run_id, lambda _run: waits_for_work(victim, spare), seconds=60)
    saved = victim.checkpoint(run_id)

    child.kill()
    victim.until(run_id, runs_as(attempt=2, beyond=saved), seconds=10)

    assert attempts_first_step(victim, run_id, 2) >= saved
    [first, second] = [entry["worker"] for entry in victim.log(run_id) if "worker" in entry]
    assert str(first).endswith(f":{child.pid}")
    assert str(second).endswith(f":{spare.pid}")
    # In its turn it has a spare one.
    assert children_of(victim.worker(), at_least=2)[0] == spare

    victim.client.cancel_run(run_id)
    asked_at = time.monotonic()
    victim.until(run_id, lambda run: run["status"] == "cancelled", seconds=5)
    assert time.monotonic() - asked_at < 5


def test_a_run_goes_on_when_its_worker_is_killed_and_leaves_no_orphan(victim: Victim) -> None:
    run_id = victim.start_run()
    saved = victim.checkpoint(run_id)
    child = victim.child()

    victim.worker().kill()
    victim.until(run_id, runs_as(attempt=2, beyond=saved), seconds=75)

    gone, alive = psutil.wait_procs([child], timeout=25)
    assert (len(gone), alive) == (1, [])
    assert attempts_first_step(victim, run_id, 2) >= saved


def test_a_stack_that_is_stopped_and_started_goes_on_by_itself_at_the_same_step(
    victim: Victim,
) -> None:
    run_id = victim.start_run()
    victim.checkpoint(run_id)
    asked_at = time.monotonic()

    assert victim.stack.stop() == 0
    assert time.monotonic() - asked_at < 30
    drained = victim.checkpoint(run_id)

    with victim.again() as second:
        run = second.until(run_id, runs_as(attempt=2, beyond=drained), seconds=60)
        assert attempts_first_step(second, run_id, 2) == drained
        assert run["attempt"] == 2


def test_a_worker_that_is_told_to_stop_hands_its_run_back_uncharged_at_the_same_step(
    victim: Victim,
) -> None:
    run_id = victim.start_run()
    victim.checkpoint(run_id)
    worker, child = victim.worker(), victim.child()

    worker.terminate()
    victim.until(run_id, runs_as(attempt=2), seconds=60)

    gone, alive = psutil.wait_procs([worker, child], timeout=30)
    assert (len(gone), alive) == (2, [])
    saved = [
        int(str(one["step"]))
        for one in victim.log(run_id)
        if (one["event"], one["attempt"]) == ("checkpoint", 1)
    ]
    assert attempts_first_step(victim, run_id, 2) == saved[-1]
    assert "handed back: its worker shuts down" in victim.events(run_id)
    assert not any("worker lost" in event for event in victim.events(run_id))


# A checkpoint further on would forgive what was before.
@pytest.mark.parametrize("further_settings", [{"JOBS__CHECKPOINT_SEC": "600"}], indirect=True)
def test_a_run_that_kills_its_process_each_time_fails_in_the_end(victim: Victim) -> None:
    run_id = victim.start_run()

    for attempt in (1, 2, 3):
        victim.until(run_id, runs_as(attempt), seconds=60)
        victim.child().kill()
    run = victim.until(run_id, lambda run: run["status"] == "failed", seconds=30)

    assert run["error_code"] == "WORKER_LOST"
    assert "3 times" in run["message"]


def test_a_cancelled_run_in_the_queue_never_starts(victim: Victim) -> None:
    first = victim.start_run()
    victim.until(first, runs_as(attempt=1), seconds=60)
    second = victim.start_run()

    assert victim.client.cancel_run(second)["status"] == "cancellation-requested"
    victim.client.cancel_run(first)
    victim.until(first, lambda run: run["status"] == "cancelled", seconds=5)
    third = victim.start_run(steps=2)
    victim.until(third, lambda run: run["status"] == "completed", seconds=60)

    run = victim.client.get_run(second)
    assert (run["status"], run["attempt"]) == ("cancelled", 0)


def test_training_goes_on_and_the_queue_drains_when_the_broker_is_killed(
    victim: Victim,
) -> None:
    first = victim.start_run()
    victim.until(first, runs_as(attempt=1), seconds=60)
    second = victim.start_run(steps=2)
    broker = victim.stack.state["pids"]["broker"]
    assert broker is not None

    psutil.Process(broker).kill()
    step = victim.client.get_run(first)["step"] or 0
    victim.until(first, runs_as(attempt=1, beyond=step + 5), seconds=30)
    victim.client.cancel_run(first)

    victim.until(first, lambda run: run["status"] == "cancelled", seconds=15)
    run = victim.until(second, lambda run: run["status"] == "completed", seconds=75)
    assert run["attempt"] == 1


def test_a_worker_that_wakes_after_its_lease_writes_nothing_and_ends_its_attempt(
    victim: Victim,
) -> None:
    run_id = victim.start_run()
    victim.checkpoint(run_id)
    parent, child = victim.worker(), victim.child()

    for frozen in (parent, child):
        frozen.suspend()
    victim.until(run_id, lambda run: run["status"] == "queued", seconds=30)
    for frozen in (child, parent):
        frozen.resume()
    run = victim.until(run_id, runs_as(attempt=2), seconds=90)
    attempts_first_step(victim, run_id, 2)
    victim.until(run_id, runs_as(attempt=2, beyond=(run["step"] or 0) + 20), seconds=60)

    attempts = [entry["attempt"] for entry in victim.log(run_id)]
    assert set(attempts[attempts.index(2) :]) == {2}


@pytest.mark.slow
def test_a_worker_that_wakes_while_another_has_its_run_changes_no_file(
    victim: Victim,
) -> None:
    with victim.second_worker() as other:
        run_id = victim.start_run()
        victim.checkpoint(run_id)
        holder = str(victim.told(run_id, lambda entry: "worker" in entry)["worker"])
        worker = other if holder.startswith("train-1@") else victim.worker()
        frozen = [worker, *worker.children(recursive=True)]

        for one in frozen:
            one.suspend()
        frozen_until = time.monotonic() + 2 * float(ENVIRONMENT["JOBS__LEASE_SEC"])
        victim.until(run_id, runs_as(attempt=2, beyond=1), seconds=60)
        run = victim.until(run_id, lambda _run: time.monotonic() > frozen_until, seconds=60)
        before = files_of(victim, run_id, attempt=1)
        for one in reversed(frozen):
            one.resume()
        victim.until(run_id, runs_as(attempt=2, beyond=(run["step"] or 0) + 20), seconds=60)

        assert_one_at_a_time(victim.log(run_id))
        assert files_of(victim, run_id, attempt=1) <= before  # the other one removes old ones
