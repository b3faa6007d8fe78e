"""Moves of a job between whose two statements another move is committed, as on PostgreSQL alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import event

from trainer_app.core.spec import TrainSpec
from trainer_app.errors import CorpusNotFound
from trainer_app.store import corpora, lease, pauses, runs
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim, Status

_FILE_ID = "a" * 64


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """PostgreSQL's alone: SQLite has one writer at a time."""
    return postgres_url


@pytest.fixture
def others(database_url: str) -> Iterator[Database]:
    """The database as another process has it."""
    with closing(Database(database_url)) as opened:
        yield opened


@contextmanager
def meanwhile(database: Database, act: Callable[[], object]) -> Iterator[None]:
    """Has ``act`` done once, right after the first UPDATE of a job that comes up."""
    waiting = [act]

    def interrupt(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if waiting and statement.startswith("UPDATE jobs"):
            waiting.pop()()

    engine = database._engine()
    event.listen(engine, "after_cursor_execute", interrupt)
    yield
    event.remove(engine, "after_cursor_execute", interrupt)
    assert not waiting


@pytest.fixture
def failed(database: Database, claim: Claim) -> str:
    """A run that has failed."""
    lease.finish(database, claim, Status.FAILED)
    return claim.job_id


def test_a_failed_run_that_is_resumed_while_it_is_cancelled_is_cancelled(
    database: Database, others: Database, failed: str
) -> None:
    with meanwhile(database, lambda: pauses.resume(others, failed)):
        assert lease.request_cancel(database, failed) is Status.CANCELLED
    assert runs.get(database, failed).status is Status.CANCELLED


def test_a_failed_run_that_is_resumed_while_it_is_paused_is_paused(
    database: Database, others: Database, failed: str
) -> None:
    with meanwhile(database, lambda: pauses.resume(others, failed)):
        assert pauses.pause(database, failed) is Status.QUEUED
    assert runs.get(database, failed).paused


def test_a_run_that_fails_while_it_is_resumed_is_queued_again(
    database: Database, others: Database, claim: Claim
) -> None:
    with meanwhile(database, lambda: lease.finish(others, claim, Status.FAILED)):
        assert pauses.resume(database, claim.job_id) is Status.QUEUED
    assert runs.get(database, claim.job_id).status is Status.QUEUED


def test_a_run_that_fails_and_loses_its_corpus_while_it_is_resumed_is_not_queued_again(
    database: Database, others: Database
) -> None:
    corpora.add(database, _FILE_ID, 10, 2)
    read = TrainSpec(corpus_file_id=_FILE_ID, corpus_sha256=_FILE_ID)
    run_id = runs.create(database, read, queue="trainer").run_id
    claim = lease.claim(database, run_id, "worker:1", lease_seconds=60)
    assert claim is not None

    def fail() -> None:
        lease.finish(others, claim, Status.FAILED)
        corpora.delete(others, _FILE_ID)

    with meanwhile(database, fail), pytest.raises(CorpusNotFound):
        pauses.resume(database, run_id)
    assert runs.get(database, run_id).status is Status.FAILED
