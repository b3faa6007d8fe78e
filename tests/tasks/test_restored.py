"""A database that was restored from a backup knows of fewer attempts than the disk."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tasks import process, restored
from tasks.held import draining
from tasks.job import Done, Job
from tasks.perform import perform
from tests.tasks.claims import claimed
from tests.tasks.test_resumed import logged, run_id, train, train_until_stopped
from trainer_app.core import checkpoint_name
from trainer_app.errors import LeaseLost, Unavailable
from trainer_app.settings import Settings
from trainer_app.store import lease, metrics, runs
from trainer_app.store.claims import Claim
from trainer_app.store.tables import JobKind

__all__ = ["run_id"]  # a fixture


def checkpoints(run_id: str) -> set[str]:
    folder = process.settings().paths.runs / run_id / checkpoint_name.FOLDER
    return {path.name for path in folder.iterdir()}


def back_up(database: Path, copy: Path) -> None:
    with closing(sqlite3.connect(database)) as now, closing(sqlite3.connect(copy)) as then:
        now.backup(then)


def restore(copy: Path, database: Path) -> None:
    process.database().close()
    process.database.cache_clear()
    for name in (f"{database}-wal", f"{database}-shm"):
        Path(name).unlink(missing_ok=True)
    shutil.copyfile(copy, database)


def test_a_run_goes_on_from_the_checkpoint_that_a_restored_database_knows_nothing_of(
    worker: Settings, run_id: str, tmp_path: Path
) -> None:
    file = process.database().file
    assert file is not None
    back_up(file, tmp_path / "backup.db")
    for attempt in (1, 2, 3):
        before = runs.get(process.database(), run_id).step
        train_until_stopped(run_id, draining.set, beyond=before)
        assert runs.get(process.database(), run_id).attempt == attempt
    reached = runs.get(process.database(), run_id).checkpoint_step
    assert reached
    restore(tmp_path / "backup.db", file)
    assert runs.get(process.database(), run_id).attempt == 0

    stopped = train_until_stopped(run_id, draining.set, beyond=reached)

    assert stopped.attempt == 4
    assert stopped.checkpoint_step is not None
    assert stopped.checkpoint_step > reached
    assert stopped.checkpoint in checkpoints(run_id)
    assert stopped.checkpoint == checkpoint_name.name_of(stopped.checkpoint_step, 4)
    assert "attempt 1 by the database is counted as attempt 4" in logged(run_id)

    ended = train(run_id)
    assert (ended.status, ended.attempt) == ("completed", 5)
    assert logged(run_id).count("is counted as attempt") == 1
    points = metrics.curve(process.database(), run_id)
    assert points[-1].step == ended.step
    assert max(point.attempt for point in points) == 5


def leave(path: Path) -> None:
    path.mkdir(parents=True)


@pytest.mark.parametrize(
    "name",
    [
        "{run}/checkpoints/step-000000007-attempt-6",
        "{run}/checkpoints/.step-000000007-attempt-6.0123456789abcdef.tmp",
        "{run}/curve-6.jsonl",
        "{run}/staging-6",
        "{run}-6",  # of a tokenizer
        "../artifacts/evaluations/.{run}-6.copy",
    ],
)
@pytest.mark.parametrize("kind", [JobKind.TRAIN, JobKind.TOKENIZER, JobKind.EVALUATE])
def test_whatever_a_later_attempt_has_left_is_noticed(
    run_id: str, name: str, kind: JobKind
) -> None:
    leave(process.settings().paths.runs / name.format(run=run_id))

    claim = restored.counted_anew(replace(claimed(run_id, "here:1"), kind=kind))

    assert (claim.attempt, claim.counted) == (7, 1)
    lease.beat(process.database(), claim, lease_seconds=60)
    with pytest.raises(LeaseLost):
        lease.beat(process.database(), replace(claim, attempt=1), lease_seconds=60)


@pytest.mark.parametrize(
    "name",
    [
        f"{{run}}/checkpoints/step-000000007-attempt-{2**31}",
        f"{{run}}/staging-{2**31 - 2}",  # an INTEGER counts one attempt beyond it, and no other
        f"{{run}}/staging-{2**30 + 1}",
        "{run}/checkpoints/step-attempt-6",
        "{run}/curve-mine.jsonl",
        "other/curve-6.jsonl",
        "{run}",
    ],
)
def test_what_is_of_no_attempt_is_no_reason_to_count_anew(run_id: str, name: str) -> None:
    leave(process.settings().paths.runs / name.format(run=run_id))
    claim = claimed(run_id, "here:1")

    assert restored.counted_anew(claim) == claim


def test_files_of_an_attempt_of_the_same_number_are_those_of_another(run_id: str) -> None:
    leave(process.settings().paths.runs / run_id / "staging-1")

    assert restored.counted_anew(claimed(run_id, "here:1")).attempt == 2


def test_a_job_that_leaves_no_files_is_not_counted_anew(run_id: str) -> None:
    leave(process.settings().paths.runs / run_id / "staging-6")
    claim = replace(claimed(run_id, "here:1"), kind=JobKind.CHAT)

    assert restored.counted_anew(claim) == claim


def test_who_slept_since_the_claim_takes_no_number_from_the_later_attempt(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it finds on the disk then is that one's, of which the database knows well."""
    lift = restored.counted_anew
    later: list[Claim] = []

    def sleep(claim: Claim) -> Claim:
        if not later:
            later.append(claim)
            lease.expire(process.database(), run_id, owner_prefix=claim.owner)
            lease.reap(process.database(), max_crashes=3)
            later.append(lift(claimed(run_id, "awake:2")))
            leave(process.settings().paths.runs / run_id / "staging-2")
        return lift(claim)

    monkeypatch.setattr(restored, "counted_anew", sleep)

    perform(run_id, hostname="train-0@here", work=no_work)

    assert runs.get(process.database(), run_id).attempt == 2
    lease.beat(process.database(), later[1], lease_seconds=60)


def no_work(_job: Job) -> Done:
    raise AssertionError("another has the run")


def test_an_attempt_that_outlived_the_restore_publishes_nothing_once_it_is_counted_past(
    run_id: str,
) -> None:
    """The row came to its number again, under the name of its own process."""
    owner = "train-0@here:7"
    outlived = replace(claimed(run_id, owner), attempt=3)
    staged = process.settings().paths.runs / run_id / "staging-3"
    leave(staged)
    lease.hand_back(process.database(), replace(outlived, attempt=1), message="")
    lease.hand_back(process.database(), claimed(run_id, owner), message="")

    claim = restored.counted_anew(claimed(run_id, owner))

    assert claim.attempt == 4
    with pytest.raises(LeaseLost):
        lease.beat(process.database(), outlived, lease_seconds=60)


def test_an_answer_that_is_lost_when_an_attempt_is_counted_anew_costs_none(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(process.settings().paths.runs / run_id / "staging-6")
    lift = restored.counted_anew
    lost: list[Claim] = []

    def lose_the_first_answer(claim: Claim) -> Claim:
        lifted = lift(claim)
        if not lost:
            lost.append(lifted)
            raise Unavailable("the connection was lost after COMMIT")
        return lifted

    monkeypatch.setattr(restored, "counted_anew", lose_the_first_answer)
    done = Done(result="{}", result_id=run_id)

    perform(run_id, hostname="train-0@here", work=lambda _: done)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.attempt) == ("completed", 7)
