"""An evaluation that slept past its lease changes nothing of a later one when it wakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import evaluation, housekeeping, process, staging
from tasks.job import Job
from tasks.perform import perform
from tasks.shells import work_of
from tests.tasks.tiny_runs import QueueRun
from trainer_app import artifacts
from trainer_app.core import files
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.store import lease, requests
from trainer_app.store.lease import JobKind


@pytest.fixture
def run_id(queue_run: QueueRun) -> str:
    """A run that this worker has trained for a moment."""
    run_id = queue_run(max_steps=1, holdout_fraction=0.1)
    perform(run_id, hostname="train@here", work=work_of(JobKind.TRAIN))
    return run_id


def queue(run_id: str) -> str:
    return requests.create(
        process.database(),
        JobKind.EVALUATE,
        run_id,
        EvaluateSpec().to_json(),
        queue="q",
        user_id=0,
        topic="validation",
    ).request_id


def evaluate(request_id: str) -> None:
    perform(request_id, hostname="inference@here", work=evaluation.work)


def kept(run_id: str) -> object:
    found = artifacts.read_evaluation(process.settings(), run_id, "validation")
    return None if found is None else found["request_id"]


def after_the_look(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[], object]) -> None:
    """Fall asleep right after the last look at the lease."""
    renew, naps = Job.renew_lease, [sleep]

    def renew_and_sleep(job: Job) -> None:
        renew(job)
        if naps:
            naps.pop()()

    monkeypatch.setattr(Job, "renew_lease", renew_and_sleep)


def before_the_rename(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[], object]) -> None:
    """Fall asleep between the last look at the lease and the rename."""
    replace, naps = Path.replace, [sleep]

    def sleep_and_replace(path: Path, target: Path) -> Path:
        if naps and target.name == "validation.json" and path.name == target.name:
            naps.pop()()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", sleep_and_replace)


@pytest.mark.parametrize("fall_asleep", [after_the_look, before_the_rename])
def test_the_file_of_a_later_evaluation_stays_as_it_is(
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    fall_asleep: Callable[[pytest.MonkeyPatch, Callable[[], object]], None],
) -> None:
    slept = queue(run_id)
    later: list[str] = []

    def sleep() -> None:
        lease.request_cancel(process.database(), slept)
        lease.expire(process.database(), slept, owner_prefix="inference@here")
        housekeeping.reap()
        later.append(queue(run_id))
        evaluate(later[0])
        assert kept(run_id) == later[0]

    fall_asleep(monkeypatch, sleep)
    evaluate(slept)

    assert [kept(run_id)] == later
    file = artifacts.evaluation_file(process.settings(), run_id, "validation")
    assert list(file.parent.iterdir()) == [file]
    assert list(file.parent.parent.iterdir()) == [file.parent]


def test_who_sleeps_before_it_writes_the_file_has_lost_its_lease_and_nothing_else(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = queue(run_id)
    write = files.write_atomically

    def sleep_and_write(path: Path, data: bytes) -> None:
        lease.expire(process.database(), request_id, owner_prefix="inference@here")
        housekeeping.reap()
        write(path, data)

    monkeypatch.setattr(evaluation, "write_atomically", sleep_and_write)
    evaluate(request_id)

    assert kept(run_id) is None
    assert not process.spent.is_set()
    found = requests.get(process.database(), JobKind.EVALUATE, run_id, request_id)
    assert (found.status, found.message) == ("queued", "attempt 1: worker lost; queued again")


def test_what_attempts_have_left_that_a_restored_database_lacks_is_in_nobodys_way(
    run_id: str,
) -> None:
    settings = process.settings()
    request_id = queue(run_id)
    staging.of_evaluation(settings, request_id, 1).mkdir(parents=True)

    evaluate(request_id)

    assert kept(run_id) == request_id
    file = artifacts.evaluation_file(settings, run_id, "validation")
    assert list(file.parent.parent.iterdir()) == [file.parent]


def test_what_an_earlier_attempt_has_prepared_goes_with_the_next_one(run_id: str) -> None:
    settings = process.settings()
    request_id = queue(run_id)
    claim = lease.claim(process.database(), request_id, "gone:1", lease_seconds=60)
    assert claim is not None
    left = staging.of_evaluation(settings, request_id, claim.attempt)
    left.mkdir(parents=True)
    lease.hand_back(process.database(), claim, message="")

    evaluate(request_id)

    assert kept(run_id) == request_id
    assert not left.exists()
