"""What queued jobs say that wait for a worker which is not there, on each database."""

from __future__ import annotations

from sqlalchemy import select

from tests.store.conftest import AnotherRun
from tests.store.kinds import make_later
from trainer_app.store import lease, pauses, runs, waits
from trainer_app.store.database import Database
from trainer_app.store.tables import JobRow

SAID = "waits for a worker of queue trainer, of which there is none"


def message(database: Database, run_id: str) -> str:
    return runs.get(database, run_id).message


def test_a_queued_job_says_once_that_its_queue_has_no_worker(
    database: Database, run_id: str
) -> None:
    assert waits.queues(database) == {"trainer"}
    assert waits.tell(database, "another") == []
    assert waits.tell(database, "trainer") == [run_id]
    assert waits.tell(database, "trainer") == []
    assert message(database, run_id) == SAID

    waits.take_back(database, set())
    assert message(database, run_id) == SAID
    waits.take_back(database, {"trainer", "another"})
    assert message(database, run_id) == ""


def test_a_job_that_no_worker_may_take_waits_for_none(database: Database, run_id: str) -> None:
    pauses.pause(database, run_id)
    assert waits.queues(database) == frozenset()
    assert waits.tell(database, "trainer") == []
    pauses.resume(database, run_id)
    assert lease.claim(database, run_id, "worker:1", lease_seconds=60) is not None
    assert waits.queues(database) == frozenset()
    assert waits.tell(database, "trainer") == []


def test_a_job_of_a_kind_that_a_later_version_has_is_left_to_its_housekeeping(
    database: Database, run_id: str, another_run: AnotherRun
) -> None:
    told = another_run()
    make_later(database, run_id)

    assert waits.tell(database, "trainer") == [told]
    make_later(database, told)
    assert waits.queues(database) == frozenset()
    waits.take_back(database, {"trainer"})
    with database.read() as connection:
        rows = connection.execute(select(JobRow.id, JobRow.message)).all()
    assert {row.id: row.message for row in rows} == {run_id: "", told: SAID}
