"""Which wake-up calls are due while others wait in the lists of the broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sqlalchemy import select, update

from trainer_app.core.spec import TrainSpec
from trainer_app.store import lease, runs, wakeups
from trainer_app.store.database import Database
from trainer_app.store.tables import JobRow
from trainer_app.store.wakeups import Line

Elapse = Callable[[float], None]


class AnotherRun(Protocol):
    def __call__(self, **fields: object) -> str: ...


def _due(database: Database, waiting: dict[Line, float] | None = None) -> list[str]:
    return [wakeup.job_id for wakeup in lease.due(database, waiting=waiting)]


def _dispatched_at(database: Database, run_id: str) -> float:
    statement = select(JobRow.dispatched_at).where(JobRow.id == run_id)
    with database.read() as connection:
        at = connection.scalar(statement)
    assert at is not None
    return at


def test_calls_that_are_due_at_once_have_the_order_in_which_they_are_sent(
    database: Database, another_run: AnotherRun
) -> None:
    ids = [another_run(), another_run(), another_run(priority=9)]
    called = lease.due(database)
    assert [wakeup.job_id for wakeup in called] == [ids[2], ids[0], ids[1]]
    at = [wakeup.dispatched_at for wakeup in called]
    assert at == sorted(set(at))
    assert at == [_dispatched_at(database, wakeup.job_id) for wakeup in called]


def test_of_the_calls_of_a_line_those_before_the_oldest_that_waits_are_due(
    database: Database, another_run: AnotherRun, elapse: Elapse
) -> None:
    taken, oldest, newest = (another_run() for _ in range(3))
    lease.due(database)
    elapse(61)
    waiting = {Line("trainer", 0): _dispatched_at(database, oldest)}

    assert _due(database, waiting) == [taken]
    assert _due(database, waiting) == []
    assert _due(database, {Line("trainer", 0): _dispatched_at(database, newest)}) == [oldest]


def test_a_call_that_waits_says_nothing_of_those_of_other_lines(
    database: Database, spec: TrainSpec, another_run: AnotherRun, elapse: Elapse
) -> None:
    elsewhere = runs.create(database, spec, queue="another").run_id
    waits, urgent = another_run(), another_run(priority=9)
    lease.due(database)
    elapse(61)

    assert wakeups.unanswered(database) == {
        Line("another", 0),
        Line("trainer", 0),
        Line("trainer", 9),
    }
    waiting = {Line("trainer", 0): _dispatched_at(database, waits)}
    assert _due(database, waiting) == [urgent, elsewhere]
    assert wakeups.unanswered(database) == {Line("trainer", 0)}


def test_a_job_that_was_never_called_is_due_whatever_waits(database: Database, run_id: str) -> None:
    assert _due(database, {Line("trainer", 0): 1.0}) == [run_id]


def test_a_call_by_a_clock_since_set_back_is_due_whatever_waits(
    database: Database, run_id: str, elapse: Elapse
) -> None:
    lease.due(database)
    elapse(-86_400)
    assert _due(database, {Line("trainer", 0): 1.0}) == [run_id]


def test_neither_what_is_paused_nor_what_was_called_lately_is_unanswered(
    database: Database, run_id: str, elapse: Elapse
) -> None:
    assert wakeups.unanswered(database) == {Line("trainer", 0)}
    lease.due(database)
    assert wakeups.unanswered(database) == set()
    elapse(61)
    with database.write() as connection:
        connection.execute(update(JobRow).values(paused=True))
    assert wakeups.unanswered(database) == set()
