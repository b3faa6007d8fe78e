"""The database did what it was asked for, and went away before it could say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection

from tasks import process
from tasks.perform import Done, Job, perform
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TrainSpec
from trainer_app.errors import CorpusEmpty, DiskFull, Unavailable
from trainer_app.settings import Settings
from trainer_app.store import lease, runs
from trainer_app.store.database import Database
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
        (None, "completed", "trainer.job.completed.v1"),
        (CorpusEmpty("the corpus holds no text"), "failed", "trainer.job.failed.v1"),
        (StopReason.CANCEL, "cancelled", "trainer.job.failed.v1"),
        (StopReason.DRAIN, "queued", "trainer.job.started.v1"),
        (DiskFull("no space left"), "queued", "trainer.job.started.v1"),
    ],
)
def test_an_end_whose_answer_was_lost_is_told_like_any_other(
    database: Unanswering,
    run_id: str,
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
    assert sent_events()[-1]["type"] == told


def test_a_claim_whose_answer_was_lost_is_worked_on(database: Unanswering, run_id: str) -> None:
    database.answers_to_lose = 1

    perform(run_id, hostname="train-0@here", work=done)

    run = runs.get(database, run_id)
    assert (run.status, run.attempt) == ("completed", 1)


def test_an_end_that_was_not_taken_before_the_lease_was_lost_is_not_told(
    database: Unanswering, run_id: str, sent_events: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, tries = lease.finish, []

    def finish_once_it_is_too_late(*args: object, **more: object) -> Status:
        tries.append(args)
        if len(tries) == 1:
            lease.expire(database, run_id, owner_prefix="train-0@here")
            lease.reap(database, max_crashes=3)
            raise Unavailable("the connection was lost before COMMIT")
        return finish(database, claims[0], Status.COMPLETED, result="{}")

    claims = []

    def work(job: Job) -> Done:
        claims.append(job.claim)
        return done(job)

    monkeypatch.setattr(lease, "finish", finish_once_it_is_too_late)
    perform(run_id, hostname="train-0@here", work=work)

    assert runs.get(database, run_id).status == "queued"
    assert [event["type"] for event in sent_events()] == ["trainer.job.started.v1"]
