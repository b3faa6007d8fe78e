"""A worker takes what it can do as asked; the rest it leaves to workers of a later version."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from sqlalchemy import select, update

from tasks import process
from tasks.job import Done, Job
from tasks.perform import perform
from tests.store.kinds import make_later
from trainer_app.core.spec import TrainSpec
from trainer_app.settings import Settings
from trainer_app.store import lease, pauses, runs
from trainer_app.store.database import Database
from trainer_app.store.tables import JobRow

SPEC = TrainSpec(corpus_sha256="0" * 64, corpus_path="a.txt")


def done(job: Job) -> Done:
    return Done(result="{}", result_id=job.claim.job_id)


def posted_by_a_later_version(database: Database, more: Mapping[str, object]) -> str:
    run_id = runs.create(database, SPEC, queue="trainer").run_id
    spec = json.dumps({**json.loads(SPEC.to_json()), **more})
    with database.write() as connection:
        connection.execute(update(JobRow).where(JobRow.id == run_id).values(spec=spec))
    return run_id


def test_a_run_that_asks_for_what_a_later_version_knows_waits_for_it(worker: Settings) -> None:
    database = process.database()
    run_id = posted_by_a_later_version(database, {"lookahead": 3, "averaging": None, "mix": []})

    for _ in range(2):
        perform(run_id, hostname="train-0@here", work=done)

    run = runs.get(database, run_id)
    assert (run.status, run.attempt) == ("queued", 0)
    assert run.message == "waits for a worker of a later version, which knows lookahead"
    assert lease.due(database) == []  # not at once, but soon
    with database.write() as connection:
        connection.execute(update(JobRow).values(not_before=0.0))
    assert [wakeup.job_id for wakeup in lease.due(database)] == [run_id]


@pytest.mark.usefixtures("worker")
def test_a_run_with_fields_of_a_later_version_that_ask_for_nothing_is_done() -> None:
    database = process.database()
    run_id = posted_by_a_later_version(
        database, {"averaging": None, "lookahead": 0, "mix": [], "twice": False}
    )

    perform(run_id, hostname="train-0@here", work=done)

    assert runs.get(database, run_id).status == "completed"


@pytest.mark.usefixtures("worker")
def test_a_paused_run_is_not_put_off() -> None:
    database = process.database()
    run_id = posted_by_a_later_version(database, {"lookahead": 3})
    pauses.pause(database, run_id)
    said = runs.get(database, run_id).message

    perform(run_id, hostname="train-0@here", work=done)

    assert runs.get(database, run_id).message == said


@pytest.mark.usefixtures("worker")
def test_a_job_of_a_kind_that_a_later_version_has_waits_for_it() -> None:
    database = process.database()
    run_id = posted_by_a_later_version(database, {})
    make_later(database, run_id)

    perform(run_id, hostname="train-0@here", work=done)

    with database.read() as connection:
        job = connection.execute(select(JobRow.status, JobRow.message)).one()
    said = "waits for a worker of a later version, which knows jobs of the kind distil"
    assert tuple(job) == ("queued", said)
