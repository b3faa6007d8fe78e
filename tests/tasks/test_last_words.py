"""What a lost job's log says last, and that nothing in it silences what became of the job."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tasks import housekeeping, process
from trainer_app.core.spec import TrainSpec
from trainer_app.log import JobLog, job_log_path
from trainer_app.settings import Settings
from trainer_app.store import lease, runs, upkeep
from trainer_app.store.database import Database
from trainer_app.store.upkeep import Reaped

Sent = Callable[[], list[dict[str, object]]]

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")


@pytest.fixture
def lost(worker: Settings, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two runs that have lost the last worker that they may."""
    monkeypatch.setenv("JOBS__MAX_CRASHES", "1")
    process.settings.cache_clear()
    found = [runs.create(process.database(), SPEC, queue="trainer").run_id for _ in "ab"]
    for run_id in found:
        assert lease.claim(process.database(), run_id, "train-0@gone:1", lease_seconds=60)
        lease.expire(process.database(), run_id, owner_prefix="train-0@gone:")
    return found


def write(settings: Settings, run_id: str, text: str) -> None:
    path = job_log_path(settings, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    "text", ["null\n", "12\n", '"event"\n', "[]\n", "{}\n", "[" * 10_000 + "\n", "\n", ""]
)
def test_a_log_that_is_none_of_ours_keeps_nobody_from_hearing_what_became_of_the_jobs(
    worker: Settings, lost: list[str], sent_events: Sent, text: str
) -> None:
    write(worker, lost[0], text)

    housekeeping.reap()

    assert {event["job_id"] for event in sent_events()} == set(lost)
    assert runs.get(process.database(), lost[0]).message == "lost its worker 1 time; last at step 0"


def test_the_last_words_hold_the_line_separators_that_were_written(
    worker: Settings, lost: list[str], sent_events: Sent
) -> None:
    log = JobLog(job_log_path(worker, lost[0]))
    log.info("first")
    log.info("a\u202812\u2028b\x85c", step=3)
    log.close()

    housekeeping.reap()

    run = runs.get(process.database(), lost[0])
    assert run.message.endswith("; its log ends with: first | a\u202812\u2028b\x85c 3")
    assert len(sent_events()) == 2


def test_a_job_that_cannot_be_told_of_for_no_known_reason_silences_no_other(
    lost: list[str], monkeypatch: pytest.MonkeyPatch, worker: Settings, sent_events: Sent
) -> None:
    for run_id in lost:
        write(worker, run_id, '{"event": "step 3"}\n')
    explain, told = upkeep.explain, list[str]()

    def fail_once(database: Database, reaped: Reaped, message: str) -> None:
        told.append(reaped.job_id)
        if len(told) == 1:
            raise ZeroDivisionError("nobody thought of this")
        explain(database, reaped, message)

    monkeypatch.setattr(upkeep, "explain", fail_once)
    housekeeping.reap()

    assert [event["job_id"] for event in sent_events()] == told[1:]
    assert len(told) == 2


def test_a_job_that_is_queued_again_is_asked_for_no_last_words(
    worker: Settings, lost: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBS__MAX_CRASHES", "2")
    process.settings.cache_clear()
    asked: list[object] = []
    monkeypatch.setattr(housekeeping, "last_events", lambda *what: asked.append(what))

    housekeeping.reap()

    assert asked == []
    assert {runs.get(process.database(), run_id).status for run_id in lost} == {"queued"}
