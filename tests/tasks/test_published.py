"""A run whose model is published has completed, whatever becomes of its attempt afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import housekeeping, process, training
from tasks.figures import LOSSES, left_in_place
from tasks.perform import perform
from tasks.slow_duties import SlowDuties
from tests.databank_server import DataBankServer
from tests.tasks.tiny_runs import QueueRun
from trainer_app import artifacts
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import StopRequested, never
from trainer_app.errors import LeaseLost
from trainer_app.log import job_log_path
from trainer_app.restore import is_whole
from trainer_app.store import lease, runs
from trainer_app.store.runs import Run

Sent = Callable[[], list[dict[str, object]]]


class Killed(BaseException):
    """The process is no more."""


@pytest.fixture
def run_id(queue_run: QueueRun) -> str:
    return queue_run()


def train(run_id: str) -> Run:
    perform(run_id, hostname="train-0@here", work=training.work)
    return runs.get(process.database(), run_id)


def lose_the_worker_while_it_uploads(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_the_worker_at("keep", run_id, monkeypatch, cancelled=True)


def lose_the_worker_at(
    place: str, run_id: str, monkeypatch: pytest.MonkeyPatch, *, cancelled: bool
) -> None:
    """``cancelled``: after a user has asked for the run's cancellation, which is too late."""

    def die(*_: object, **__: object) -> None:
        if cancelled:
            lease.request_cancel(process.database(), run_id)
        raise Killed

    monkeypatch.setattr(training, place, die)
    with pytest.raises(Killed):
        train(run_id)
    lease.expire(process.database(), run_id, owner_prefix="train-0@here")


def told(events: list[dict[str, object]]) -> list[object]:
    """What was told of the end."""
    kinds = [event["type"] for event in events]
    return [kind for kind in kinds if "completed" in str(kind) or "failed" in str(kind)]


def test_a_run_whose_worker_dies_after_it_had_published_has_completed(
    run_id: str, monkeypatch: pytest.MonkeyPatch, sent_events: Sent
) -> None:
    monkeypatch.setenv("JOBS__MAX_CRASHES", "1")
    process.settings.cache_clear()
    lose_the_worker_while_it_uploads(run_id, monkeypatch)
    final = artifacts.model_directory(process.settings(), run_id)

    housekeeping.reap()
    housekeeping.reap()

    run = runs.get(process.database(), run_id)
    assert (run.status, run.attempt, run.crashes, run.progress) == ("completed", 1, 0, 100)
    assert (run.error_code, run.message, run.artifact_storage) == (None, "", "local")
    assert is_whole(final, sealed=run.artifact_sha256)
    words = "attempt 1: worker lost after it had published the model; completed"
    assert words in job_log_path(process.settings(), run_id).read_text()
    events = sent_events()
    assert told(events) == ["trainer.job.completed.v1", "trainer.metrics.completed.v1"]
    job, figures = events[-2:]
    size = sum(path.stat().st_size for path in final.rglob("*") if path.is_file())
    assert (job["result_id"], job["result_bytes"]) == (run_id, size)
    assert figures["artifact_path"] == str(final)
    assert isinstance(figures["test_loss"], float)


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_run_whose_worker_dies_as_soon_as_its_model_is_in_place_has_completed(
    run_id: str, monkeypatch: pytest.MonkeyPatch, sent_events: Sent, cancelled: bool
) -> None:
    """Before anything of it was written down."""
    monkeypatch.setenv("JOBS__MAX_CRASHES", "1")
    process.settings.cache_clear()
    lose_the_worker_at("_recorded", run_id, monkeypatch, cancelled=cancelled)

    housekeeping.reap()

    run = runs.get(process.database(), run_id)
    assert (run.status, run.crashes, run.progress) == ("completed", 0, 100)
    final = artifacts.model_directory(process.settings(), run_id)
    assert is_whole(final, sealed=run.artifact_sha256)
    assert json.loads(run.result or "{}")["steps"] == run.step
    assert told(sent_events()) == ["trainer.job.completed.v1", "trainer.metrics.completed.v1"]


def break_the_manifest(final: Path) -> None:
    (final / "manifest.json").write_text("{")


def lose_the_weights(final: Path) -> None:
    (final / "model.safetensors").unlink()


def name_another_run(final: Path) -> None:
    manifest = artifacts.read_manifest(final)
    (final / "manifest.json").write_text(json.dumps(manifest | {"run_id": "another"}))


def measure_nothing(final: Path) -> None:
    manifest = artifacts.read_manifest(final)
    (final / "manifest.json").write_text(json.dumps(manifest | dict.fromkeys(LOSSES)))


@pytest.mark.parametrize(
    "harm", [break_the_manifest, lose_the_weights, name_another_run, measure_nothing]
)
def test_what_is_no_model_of_the_run_completes_it_not(
    run_id: str, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None]
) -> None:
    lose_the_worker_while_it_uploads(run_id, monkeypatch)
    final = artifacts.model_directory(process.settings(), run_id)
    assert left_in_place(final, run_id) is not None
    harm(final)

    assert left_in_place(final, run_id) is None


def test_housekeeping_sends_the_model_of_a_worker_that_died_while_it_uploaded(
    server: DataBankServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_worker_while_it_uploads(run_id, monkeypatch)

    housekeeping.reap()

    run = runs.get(process.database(), run_id)
    assert (run.status, run.error_code) == ("completed", "ARTIFACT_UPLOAD_FAILED")
    assert run.message == "the model was not uploaded: the attempt ended before"
    SlowDuties().one_pass(never)
    run = runs.get(process.database(), run_id)
    assert (run.artifact_storage, run.error_code, run.message) == ("data-bank", None, "")
    assert run.artifact_file_id in server.files
    assert not (process.settings().paths.runs / run_id).exists()


@pytest.mark.parametrize(
    "end",
    [
        StopRequested(StopReason.CANCEL),
        StopRequested(StopReason.TIMEOUT),
        StopRequested(StopReason.DRAIN),
        RuntimeError("a fault of ours"),
    ],
    ids=str,
)
def test_what_stops_an_attempt_after_it_has_published_costs_no_model(
    run_id: str, monkeypatch: pytest.MonkeyPatch, sent_events: Sent, end: Exception
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise end

    monkeypatch.setattr(training, "keep", interrupt)

    run = train(run_id)

    assert (run.status, run.attempt, run.artifact_storage) == ("completed", 1, "local")
    assert told(sent_events()) == ["trainer.job.completed.v1", "trainer.metrics.completed.v1"]


def test_who_has_lost_the_lease_after_it_had_published_ends_nothing(
    run_id: str, monkeypatch: pytest.MonkeyPatch, sent_events: Sent
) -> None:
    def sleep(*_: object, **__: object) -> None:
        lease.expire(process.database(), run_id, owner_prefix="train-0@here")
        housekeeping.reap()
        raise LeaseLost("the lease has passed to another attempt")

    monkeypatch.setattr(training, "keep", sleep)

    assert train(run_id).status == "completed"

    assert told(sent_events()) == ["trainer.job.completed.v1", "trainer.metrics.completed.v1"]
