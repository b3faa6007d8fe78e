"""Finished models on their way to the data bank: the run completes whatever becomes of that."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import time
from pathlib import Path

import pytest
import structlog

from tasks import process
from tasks.held import draining
from tasks.job import Done, Job
from tasks.perform import perform
from tasks.slow_duties import SlowDuties
from tasks.upload import keep
from tests.databank_server import (
    Behaviour,
    DataBankServer,
    Request,
    body,
    hang_up,
    sha256,
    silent,
    status,
)
from trainer_app import artifacts
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TrainSpec
from trainer_app.core.stopping import never
from trainer_app.settings import Settings
from trainer_app.store import lease, runs, uploads
from trainer_app.store.runs import Run

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")
WEIGHTS = bytes(range(256)) * 1_000


@pytest.fixture
def run_id(worker: Settings) -> str:
    return runs.create(process.database(), SPEC, queue="trainer", request_id="req-7").run_id


def publish(run_id: str) -> Path:
    """The model of a run, as training leaves it."""
    staging = process.settings().paths.runs / run_id / "staging"
    staging.mkdir(parents=True)
    (staging / "model.safetensors").write_bytes(WEIGHTS)
    folder = artifacts.model_directory(process.settings(), run_id)
    artifacts.publish(staging, folder, {"run_id": run_id})
    return folder


def finish(job: Job) -> Done:
    """The end of a training job."""
    kept = keep(job, publish(job.claim.job_id), on_message=job.log.info)
    return Done(result="{}", result_id="", artifact=kept.artifact, problem=kept.problem)


def completed(run_id: str) -> Run:
    perform(run_id, hostname="train-0@here", work=finish)
    run = runs.get(process.database(), run_id)
    assert run.status == "completed"
    return run


def logged(run_id: str) -> list[dict[str, object]]:
    path = Path(process.settings().paths.logs, f"{run_id}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_finished_model_is_stored_as_one_archive(server: DataBankServer, run_id: str) -> None:
    run = completed(run_id)

    assert (run.artifact_storage, run.error_code, run.message) == ("data-bank", None, "")
    assert run.artifact_file_id is not None
    data = server.files[run.artifact_file_id]
    archive = uploads.of_run(process.database(), run_id)
    assert archive is not None
    assert (archive.sha256, archive.bytes) == (sha256(data), len(data))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.extractfile(f"{run_id}/model.safetensors")
        assert member is not None
        assert member.read() == WEIGHTS
    (request,) = server.requests
    assert f'filename="model-{run_id}.tar.gz"' in request.disposition
    assert request.headers["X-Request-ID"] == "req-7"
    assert request.headers["X-API-Key"] == "bank-secret"
    assert "bank-secret" not in str(logged(run_id))


def test_without_a_data_bank_a_model_is_here_alone(worker: Settings, run_id: str) -> None:
    run = completed(run_id)

    assert (run.artifact_storage, run.artifact_file_id, run.error_code) == ("local", None, None)


WRONG = json.dumps({"file_id": "a", "size": 1, "sha256": "0" * 64}).encode()


@pytest.mark.parametrize("failure", [status(500), status(429), hang_up, body(WRONG, 201)])
def test_an_upload_that_fails_once_is_tried_again(
    server: DataBankServer, run_id: str, failure: Behaviour
) -> None:
    server.then("POST", failure)

    assert completed(run_id).artifact_storage == "data-bank"
    assert len(server.requests) == 2
    assert "trying again" in str(logged(run_id))


@pytest.mark.parametrize(
    ("failure", "tries", "why"),
    [
        (status(500), 2, "500"),
        (hang_up, 2, "does not answer"),
        (status(413), 1, "413"),
        (status(401), 1, "APP__DATA_BANK_API_KEY"),
        (status(404), 1, "no such file"),
        (status(307, Location="http://localhost:9/files"), 1, "another host"),
        (body(WRONG, 201), 2, "other bytes"),
    ],
)
def test_a_run_whose_upload_fails_is_complete_and_says_why(
    server: DataBankServer, run_id: str, failure: Behaviour, tries: int, why: str
) -> None:
    server.always("POST", failure)

    run = completed(run_id)

    assert (run.artifact_storage, run.artifact_file_id) == ("local", None)
    assert run.error_code == "ARTIFACT_UPLOAD_FAILED"
    assert why in run.message
    assert "bank-secret" not in run.message
    assert len(server.requests) >= tries
    assert "ARTIFACT_UPLOAD_FAILED" in [line.get("error_code") for line in logged(run_id)]
    assert (artifacts.model_directory(process.settings(), run_id) / "model.safetensors").exists()


def test_a_fault_of_ours_in_an_upload_costs_no_model(server: DataBankServer, run_id: str) -> None:
    def lose_a_file(request: Request) -> None:
        folder = artifacts.model_directory(process.settings(), run_id)
        (folder / "model.safetensors").rename(folder / "aside")
        hang_up(request)

    server.then("POST", lose_a_file)

    run = completed(run_id)

    assert run.error_code == "ARTIFACT_UPLOAD_FAILED"
    assert "FileNotFoundError" in run.message


@pytest.mark.parametrize("reason", ["cancel", "drain"])
def test_a_stop_ends_the_upload_and_not_the_run(
    server: DataBankServer, run_id: str, reason: str
) -> None:
    def stop(request: Request) -> None:
        if reason == "drain":
            draining.set()
        else:
            lease.request_cancel(process.database(), run_id)
        request.receive()
        silent(request)

    server.then("POST", stop)
    started = time.monotonic()

    run = completed(run_id)

    assert time.monotonic() - started < 5
    assert (run.error_code, run.artifact_storage) == ("ARTIFACT_UPLOAD_FAILED", "local")
    assert reason in run.message


def test_a_worker_that_lost_its_lease_while_it_uploads_writes_nothing(
    server: DataBankServer, run_id: str
) -> None:
    def lose(request: Request) -> None:
        lease.expire(process.database(), run_id, owner_prefix="train-0@here")
        lease.reap(process.database(), max_crashes=3)
        silent(request)

    server.then("POST", lose)

    perform(run_id, hostname="train-0@here", work=finish)

    run = runs.get(process.database(), run_id)
    assert (run.status, run.artifact_storage, run.error_code) == ("queued", None, None)


def test_housekeeping_sends_what_could_not_be_sent(server: DataBankServer, run_id: str) -> None:
    server.then("POST", status(400))
    completed(run_id)

    SlowDuties().one_pass(never)

    run = runs.get(process.database(), run_id)
    assert (run.artifact_storage, run.error_code, run.message) == ("data-bank", None, "")
    assert run.artifact_file_id in server.files
    assert logged(run_id)[-1]["event"] == "the model is in the data bank"


def test_housekeeping_tries_less_often_each_time(server: DataBankServer, run_id: str) -> None:
    server.always("POST", status(400))
    completed(run_id)
    now = 10_000.0
    duties = SlowDuties(clock=lambda: now)
    tries = []

    for passed in (0, 299, 2, 590, 20):
        now += passed
        duties.one_pass(never)
        tries.append(len(server.requests) - 1)

    assert tries == [1, 1, 2, 2, 3]


def test_housekeeping_that_is_stopped_leaves_the_rest_for_the_next_time(
    server: DataBankServer, run_id: str
) -> None:
    server.then("POST", status(400))
    completed(run_id)

    SlowDuties().one_pass(lambda: StopReason.DRAIN)

    assert uploads.waiting(process.database()) == [run_id]


def test_an_upload_by_housekeeping_ends_with_it(server: DataBankServer, run_id: str) -> None:
    server.then("POST", status(400))
    completed(run_id)
    stop = threading.Event()

    def end(request: Request) -> None:
        stop.set()
        silent(request)

    server.then("POST", end)
    started = time.monotonic()

    SlowDuties().run(stop)

    assert time.monotonic() - started < 5
    assert uploads.waiting(process.database()) == [run_id]


def test_housekeeping_does_not_send_what_is_on_another_host(
    server: DataBankServer, run_id: str
) -> None:
    server.then("POST", status(400))
    completed(run_id)
    folder = artifacts.model_directory(process.settings(), run_id)
    folder.rename(folder.with_name("elsewhere"))

    SlowDuties().one_pass(never)

    assert len(server.requests) == 1


def test_of_two_housekeepers_one_records_what_it_sent(server: DataBankServer, run_id: str) -> None:
    server.then("POST", status(400))
    completed(run_id)

    def overtaken(request: Request) -> None:
        other = uploads.Archive(file_id="other", sha256="0" * 64, bytes=1)
        uploads.record_late(process.database(), run_id, other)
        request.data_bank.behaviour("POST")(request)

    server.then("POST", overtaken)
    SlowDuties().one_pass(never)

    assert runs.get(process.database(), run_id).artifact_file_id == "other"


def test_a_failing_duty_does_not_keep_the_others_from_theirs(
    server: DataBankServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP__CORPUS_CACHE_CLEANUP__ENABLED", "true")
    monkeypatch.setenv("APP__CORPUS_CACHE_CLEANUP__MAX_BYTES", "0")
    monkeypatch.setenv("APP__TOKENIZER_CLEANUP__ENABLED", "true")
    monkeypatch.setenv("APP__CLEANUP__ENABLED", "true")
    monkeypatch.setenv("APP__CLEANUP__GRACE_PERIOD_SECONDS", "0")
    process.settings.cache_clear()
    completed(run_id)
    cache = process.settings().paths.corpus_cache
    cache.mkdir()
    (cache / "a.txt").write_bytes(b"text")
    models = process.settings().paths.artifacts / "models"
    models.chmod(0o755)
    folder = artifacts.model_directory(process.settings(), run_id)
    (models / f".{run_id}.lock").symlink_to("/dev/null")  # no lock can be opened there

    with structlog.testing.capture_logs() as logs:
        SlowDuties().one_pass(never)

    assert [entry["duty"] for entry in logs if entry["event"] == "a duty failed"] == [
        "clean_models"
    ]
    assert (folder / "model.safetensors").exists()
    assert not (cache / "a.txt").exists()


def test_what_would_be_deleted_is_told_once(
    server: DataBankServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP__CLEANUP__ENABLED", "true")
    monkeypatch.setenv("APP__CLEANUP__DRY_RUN", "true")
    monkeypatch.setenv("APP__CLEANUP__GRACE_PERIOD_SECONDS", "0")
    process.settings.cache_clear()
    completed(run_id)
    duties = SlowDuties()

    with structlog.testing.capture_logs() as logs:
        duties.one_pass(never)
        duties.one_pass(never)

    told = [entry for entry in logs if entry["event"] == "would be deleted"]
    assert [(entry["what"], entry["name"]) for entry in told] == [("models", run_id)]
    assert (artifacts.model_directory(process.settings(), run_id) / "model.safetensors").exists()


def test_a_database_that_is_away_is_waited_for(
    server: DataBankServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE__URL", "postgresql://nobody@127.0.0.1:1/none")
    process.settings.cache_clear()
    process.database.cache_clear()

    with structlog.testing.capture_logs() as logs:
        SlowDuties().one_pass(never)

    duties = {"the database is away", "a duty failed"}
    assert [entry["event"] for entry in logs if entry["event"] in duties] == [
        "the database is away"
    ]
