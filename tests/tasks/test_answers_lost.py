"""The database did what it was asked for, and went away before it could say so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection

from tasks import process
from tasks.held import draining
from tasks.job import Done, Job
from tasks.perform import perform
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TrainSpec
from trainer_app.errors import CorpusEmpty, DiskFull, Unavailable
from trainer_app.log import job_log_path
from trainer_app.settings import Settings
from trainer_app.store import lease, runs
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim, Ended
from trainer_app.store.tables import Status

Sent = Callable[[], list[dict[str, object]]]

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")


class Unanswering(Database):
    """Commits, and then loses the connection, as often as it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.answers_to_lose = 0

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with super().write() as connection:
            yield connection
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            raise Unavailable("the connection was lost after COMMIT")


@pytest.fixture
def database(worker: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unanswering]:
    opened = Unanswering(worker.database_url)
    monkeypatch.setattr(process, "database", lambda: opened)
    yield opened
    opened.close()


@pytest.fixture
def run_id(database: Database) -> str:
    return runs.create(database, SPEC, queue="trainer").run_id


def done(job: Job) -> Done:
    return Done(result="{}", result_id=job.claim.job_id)


@pytest.mark.parametrize(
    ("ending", "status", "told"),
    [
        (None, "completed", "completed"),
        (CorpusEmpty("the corpus holds no text"), "failed", "the corpus holds no text"),
        (StopReason.CANCEL, "cancelled", "cancelled"),
        (StopReason.DRAIN, "queued", "handed back: its worker shuts down"),
        (DiskFull("no space left"), "queued", "attempt 1 failed: no space left; again in 300 s"),
    ],
)
def test_an_end_whose_answer_was_lost_is_told_like_any_other(
    database: Unanswering,
    run_id: str,
    worker: Settings,
    sent_events: Sent,
    ending: StopReason | Exception | None,
    status: str,
    told: str,
) -> None:
    def work(job: Job) -> Done | StopReason:
        database.answers_to_lose = 1
        if isinstance(ending, Exception):
            raise ending
        return ending or done(job)

    perform(run_id, hostname="train-0@here", work=work)

    assert runs.get(database, run_id).status == status
    (*_, last) = job_log_path(worker, run_id).read_text().splitlines()
    assert json.loads(last)["event"] == told
    final = {"completed": "completed", "failed": "failed", "cancelled": "failed"}
    assert sent_events()[-1]["type"] == f"trainer.job.{final.get(status, 'started')}.v1"


def test_a_claim_whose_answer_was_lost_is_worked_on(database: Unanswering, run_id: str) -> None:
    database.answers_to_lose = 1

    perform(run_id, hostname="train-0@here", work=done)

    run = runs.get(database, run_id)
    assert (run.status, run.attempt) == ("completed", 1)


@pytest.mark.parametrize("status", ["queued", "cancelled"])
def test_an_end_that_was_not_taken_before_the_lease_was_lost_is_not_told(
    database: Unanswering,
    run_id: str,
    sent_events: Sent,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
) -> None:
    """Also where the run was cancelled since: that is told by who cancelled it."""
    finish = lease.finish
    claims: list[Claim] = []
    tries: list[str] = []

    def finish_once_it_is_too_late(*_: object, **__: object) -> Ended:
        tries.append(run_id)
        if len(tries) == 1:
            lease.expire(database, run_id, owner_prefix="train-0@here")
            lease.reap(database, max_crashes=3)
            if status == "cancelled":
                lease.request_cancel(database, run_id)
            raise Unavailable("the connection was lost before COMMIT")
        return finish(database, claims[0], Status.COMPLETED, result="{}")

    def work(job: Job) -> Done:
        claims.append(job.claim)
        return done(job)

    monkeypatch.setattr(lease, "finish", finish_once_it_is_too_late)
    perform(run_id, hostname="train-0@here", work=work)

    assert runs.get(database, run_id).status == status
    assert [event["type"] for event in sent_events()] == ["trainer.job.started.v1"]


def test_a_claim_without_an_answer_is_not_insisted_on_while_the_worker_shuts_down(
    database: Unanswering, run_id: str
) -> None:
    database.answers_to_lose = 1
    draining.set()

    perform(run_id, hostname="train-0@here", work=done)

    assert runs.get(database, run_id).status == "running"  # until its lease is ended for it
