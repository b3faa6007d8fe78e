"""Clean-up by housekeeping: what is on by default, and what it tells."""

from __future__ import annotations

import pytest
import structlog

from tasks import process
from tasks.slow_duties import SlowDuties
from trainer_app.core.spec import TrainSpec
from trainer_app.core.stopping import never
from trainer_app.log import JobLog, job_log_path, last_events
from trainer_app.settings import Settings
from trainer_app.store import lease, runs


def ended_run(settings: Settings) -> str:
    """A run that has ended and whose working state is still there."""
    spec = TrainSpec(corpus_path="a.txt", corpus_sha256="0" * 64)
    run_id = runs.create(process.database(), spec, queue="trainer").run_id
    claim = lease.claim(process.database(), run_id, "worker:1", lease_seconds=60)
    assert claim is not None
    lease.finish(process.database(), claim, "completed", result="{}")
    (settings.paths.runs / run_id).mkdir(parents=True)
    return run_id


def test_a_run_whose_working_state_goes_is_told_so_in_its_log(worker: Settings) -> None:
    run_id, silent = ended_run(worker), ended_run(worker)
    log = JobLog(job_log_path(worker, run_id))
    log.info("completed")
    log.close()

    with structlog.testing.capture_logs() as logs:
        SlowDuties().one_pass(never)

    assert list(worker.paths.runs.iterdir()) == []
    assert {entry["name"] for entry in logs if entry["event"] == "deleted"} == {run_id, silent}
    (said,) = last_events(job_log_path(worker, run_id), 1)
    assert said == "its checkpoints were deleted: completed 0.0 days ago"
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
