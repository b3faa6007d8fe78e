"""Clean-up by housekeeping: what is on by default, and what it tells."""

from __future__ import annotations

import os

import pytest
import structlog
from sqlalchemy import update

from tasks import process
from tasks.slow_duties import SlowDuties
from trainer_app.core.spec import TrainSpec
from trainer_app.core.stopping import never
from trainer_app.folders import check_folders, remember_roots
from trainer_app.log import JobLog, job_log_path, last_events
from trainer_app.settings import Settings
from trainer_app.store import lease, runs
from trainer_app.store.tables import JobRow
from trainer_app.upload_folder import corpus_path, mark_path


def ended_run(settings: Settings, status: str) -> str:
    """A run that has ended and whose working state is still there."""
    spec = TrainSpec(corpus_path="a.txt", corpus_sha256="0" * 64)
    run_id = runs.create(process.database(), spec, queue="trainer").run_id
    claim = lease.claim(process.database(), run_id, "worker:1", lease_seconds=60)
    assert claim is not None
    lease.finish(process.database(), claim, status, result="{}")
    (settings.paths.runs / run_id).mkdir(parents=True)
    return run_id


def test_nothing_is_deleted_while_a_disk_is_away(
    worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the row of a tokenizer would go whose folder is there again later."""
    monkeypatch.setenv("TRAINER_REMEMBERED_FOLDERS", "[]")  # set back afterwards
    check_folders(worker)
    remember_roots(worker)
    done = ended_run(worker, "completed")
    with process.database().write() as session:
        session.execute(update(JobRow).values(completed_at=JobRow.completed_at - 30 * 86_400))
    worker.paths.artifacts.rename(away := worker.paths.artifacts.with_name("away"))
    with structlog.testing.capture_logs() as logs:
        SlowDuties().one_pass(never)
    assert [(entry["event"], entry["folder"]) for entry in logs] == [
        ("nothing is cleaned up while a disk is away", str(worker.paths.artifacts))
    ]
    assert (worker.paths.runs / done).exists()

    away.rename(worker.paths.artifacts)
    SlowDuties().one_pass(never)
    assert not (worker.paths.runs / done).exists()


def test_a_failed_run_whose_checkpoints_go_is_told_so_in_its_log(
    worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY__FAILURE_TTL_SEC", "60")
    process.settings.cache_clear()
    failed, silent, done = (ended_run(worker, end) for end in ("failed", "failed", "completed"))
    for run_id in (failed, done):
        log = JobLog(job_log_path(worker, run_id))
        log.info("ended")
        log.close()
    with process.database().write() as session:
        session.execute(update(JobRow).values(completed_at=JobRow.completed_at - 61))

    with structlog.testing.capture_logs() as logs:
        SlowDuties().one_pass(never)

    assert list(worker.paths.runs.iterdir()) == []
    assert {entry["name"] for entry in logs if entry["event"] == "deleted"} == {
        failed,
        silent,
        done,
    }
    assert last_events(job_log_path(worker, failed), 1) == [
        "its checkpoints were deleted: failed 0.0 days ago"
    ]
    assert last_events(job_log_path(worker, done), 1) == ["ended"]
    assert not job_log_path(worker, silent).exists()


@pytest.mark.parametrize("enabled", [True, False])
def test_token_ids_beyond_the_bound_go_unless_it_is_switched_off(
    worker: Settings, monkeypatch: pytest.MonkeyPatch, *, enabled: bool
) -> None:
    monkeypatch.setenv("APP__TOKEN_CACHE_CLEANUP__MAX_BYTES", "10")
    monkeypatch.setenv("APP__TOKEN_CACHE_CLEANUP__ENABLED", str(enabled))
    process.settings.cache_clear()
    folder = worker.paths.tokens / f"{'0' * 32}-{'1' * 32}"
    folder.mkdir(parents=True)
    (folder / "ids.bin").write_bytes(bytes(1_000))

    SlowDuties().one_pass(never)

    assert folder.exists() is not enabled


def test_what_an_upload_that_was_cut_off_has_left_goes_and_is_told(worker: Settings) -> None:
    folder = worker.paths.uploads
    folder.mkdir(parents=True)
    text, mark = corpus_path(folder, "a" * 64), mark_path(folder, "a" * 64)
    text.write_bytes(b"text")
    mark.touch()
    os.utime(mark, (0, 0))

    with structlog.testing.capture_logs() as logs:
        SlowDuties().one_pass(never)

    assert (text.exists(), mark.exists()) == (False, False)
    told = [(entry["what"], entry["name"]) for entry in logs if entry["event"] == "deleted"]
    assert told == [("uploads", text.name)]
