"""What went wrong in other systems of this kind, in their workers: each would have been caught."""

from __future__ import annotations

import time

import pytest

from tasks import process
from tasks.job import Done, Job
from tasks.perform import perform
from trainer_app import events
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TrainSpec
from trainer_app.settings import Settings
from trainer_app.store import runs, upkeep


@pytest.fixture
def run_id(worker: Settings) -> str:
    spec = TrainSpec(corpus_path="a.txt", corpus_sha256="0" * 64)
    return runs.create(process.database(), spec, queue="trainer", request_id="one").run_id


def done(job: Job) -> Done | StopReason:
    return Done(result="{}", result_id=job.claim.job_id)


def test_what_nothing_catches_leaves_no_run_running_for_ever(
    worker: Settings, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS__LEASE_SEC", "2")
    process.settings.cache_clear()

    def leave(_: Job) -> Done:
        raise SystemExit

    with pytest.raises(SystemExit):
        perform(run_id, hostname="train-0@here", work=leave)

    assert runs.get(process.database(), run_id).status == "running"
    time.sleep(2.1)
    upkeep.reap(process.database(), max_crashes=1)
    run = runs.get(process.database(), run_id)
    assert (run.status, run.error_code) == ("failed", "WORKER_LOST")
    assert run.message


def test_every_key_that_a_job_leaves_in_redis_expires(worker: Settings, run_id: str) -> None:
    perform(run_id, hostname="train-0@here", work=done)
    process.publisher().close()

    client = process.redis_client()
    for_ever = {name for name in client.scan_iter() if client.ttl(name) == -1}

    assert for_ever <= {events.STREAM}  # which is bounded by its length
    assert runs.get(process.database(), run_id).status == "completed"
    assert (worker.paths.logs / f"{run_id}.jsonl").read_text().count('"request_id": "one"') == 2
