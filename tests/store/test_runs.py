"""Runs as a client sees them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import pytest
from sqlalchemy import event, func, select, update
from sqlalchemy.engine import Engine

from trainer_app.core.spec import RequestedDevice, TrainSpec
from trainer_app.errors import CorpusNotFound, FieldError, RunNotFound
from trainer_app.store import corpora, lease, runs
from trainer_app.store.database import Database
from trainer_app.store.idempotency import IdempotencyKey
from trainer_app.store.lease import Claim, Progress, Status
from trainer_app.store.pages import Page
from trainer_app.store.runs import Run
from trainer_app.store.tables import JobRow


class AnotherRun(Protocol):
    def __call__(self, **fields: object) -> str: ...


def _key(body: str = "a") -> IdempotencyKey:
    return IdempotencyKey(endpoint="POST /runs/train", key="key", body_sha256=body * 64)


def _ids(page: Page[Run]) -> list[str]:
    return [run.run_id for run in page.items]


def test_a_new_run_is_queued_and_holds_all_that_was_asked(
    database: Database, spec: TrainSpec
) -> None:
    run = runs.create(database, spec, queue="trainer", request_id="request-1")
    assert run == runs.get(database, run.run_id)
    assert run.run_id.startswith("run-")
    assert (run.status, run.attempt, run.progress, run.step) == (Status.QUEUED, 0, 0, 0)
    assert (run.queue, run.queue_position) == ("trainer", 0)
    assert (run.started_at, run.completed_at, run.last_heartbeat_ts) == (None, None, None)
    assert run.spec == spec
    claim = lease.claim(database, run.run_id, "worker:1", lease_seconds=60)
    assert claim is not None
    assert claim.request_id == "request-1"


def test_a_running_run_shows_its_heartbeat_and_no_position(
    database: Database, claim: Claim
) -> None:
    run = runs.get(database, claim.job_id)
    assert run.last_heartbeat_ts == pytest.approx(run.started_at, abs=0.1)
    assert run.queue_position is None


def test_a_run_shows_what_its_last_attempt_resolved_and_keeps_what_was_asked(
    database: Database, claim: Claim, spec: TrainSpec
) -> None:
    devices: tuple[RequestedDevice, ...] = ("cuda", "cpu")
    for device in devices:
        lease.progress(database, claim, Progress(resolved=f'{{"device": "{device}", "new": 1}}'))
        shown = runs.get(database, claim.job_id)
        assert shown.spec == replace(spec, device=device)
        assert runs.list_(database).items == [shown]
        lease.hand_back(database, claim, message="again")
        assert runs.get(database, claim.job_id).spec == shown.spec  # until the next one knows
        again = lease.claim(database, claim.job_id, claim.owner, lease_seconds=60)
        assert again is not None
        assert again.spec == claim.spec == spec.to_json()
        claim = again


def test_an_unknown_run_is_not_found(database: Database) -> None:
    with pytest.raises(RunNotFound, match="run-unknown"):
        runs.get(database, "run-unknown")


def test_a_run_is_read_with_one_query(database: Database, run_id: str) -> None:
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        runs.get(database, run_id)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert [statement[:6] for statement in statements if statement != "BEGIN"] == ["SELECT"]


def test_the_position_counts_who_is_older_or_more_urgent_in_the_same_queue(
    database: Database, spec: TrainSpec, another_run: AnotherRun
) -> None:
    alone = runs.create(database, spec, queue="another").run_id
    first, second = another_run(), another_run()
    urgent = another_run(priority=5)
    positions = {name: runs.get(database, name).queue_position for name in (first, second, urgent)}
    assert positions == {urgent: 0, first: 1, second: 2}
    listed = runs.list_(database).items
    assert {run.run_id: run.queue_position for run in listed} == {**positions, alone: 0}
    lease.claim(database, urgent, "worker:1", lease_seconds=60)
    assert runs.get(database, second).queue_position == 1
    listed = runs.list_(database).items
    assert [run.queue_position for run in listed] == [None, 1, 0, 0]


def test_runs_are_listed_newest_first_a_page_at_a_time(
    database: Database, another_run: AnotherRun
) -> None:
    created = [another_run() for _ in range(5)]
    first = runs.list_(database, limit=2)
    assert (_ids(first), first.has_more) == (created[:2:-1], True)
    last = runs.list_(database, limit=3, after=first.next)
    assert (_ids(last), last.has_more, last.next) == (created[2::-1], False, None)


def test_pages_do_not_shift_when_runs_come_in(database: Database, another_run: AnotherRun) -> None:
    created = [another_run() for _ in range(4)]
    page = runs.list_(database, limit=2)
    another_run()
    rest = runs.list_(database, limit=2, after=page.next)
    assert _ids(page) + _ids(rest) == created[::-1]


def test_runs_of_one_moment_are_listed_once_each(
    database: Database, another_run: AnotherRun
) -> None:
    created = {another_run() for _ in range(5)}
    with database.write() as connection:
        connection.execute(update(JobRow).values(created_at=1.7e9))
    page = runs.list_(database, limit=2)
    seen = _ids(page)
    while page.next is not None:
        page = runs.list_(database, limit=2, after=page.next)
        seen += _ids(page)
    assert len(seen) == 5
    assert set(seen) == created


@pytest.mark.parametrize("cursor", ["run-unknown", "7ff8000000000000~run-1", "~", "4" * 16 + "~"])
def test_what_is_no_cursor_is_refused(database: Database, cursor: str) -> None:
    with pytest.raises(FieldError, match=cursor) as caught:
        runs.list_(database, after=cursor)
    assert caught.value.field == "after"


def test_an_empty_list_is_a_page(database: Database) -> None:
    page = runs.list_(database)
    assert (page.items, page.has_more, page.next) == ([], False, None)


def test_runs_are_found_by_all_that_is_asked(database: Database, another_run: AnotherRun) -> None:
    llama = another_run(model_family="llama", user_id=7, tags=["a", "b"])
    gpt2 = another_run(user_id=7, tags=["b"])
    other = another_run(model_family="llama", tags=["b", "b"])
    lease.request_cancel(database, gpt2)
    assert _ids(runs.list_(database, model_family="llama")) == [other, llama]
    assert _ids(runs.list_(database, user_id=7)) == [gpt2, llama]
    assert _ids(runs.list_(database, tag="a")) == [llama]
    assert _ids(runs.list_(database, tag="b")) == [other, gpt2, llama]
    assert _ids(runs.list_(database, status="cancelled")) == [gpt2]
    assert _ids(runs.list_(database, status="queued", user_id=7, tag="b")) == [llama]
    assert runs.get(database, llama).tags == ("a", "b")


def test_the_same_key_gives_the_same_run(database: Database, spec: TrainSpec) -> None:
    first = runs.create(database, spec, queue="trainer", idempotency=_key())
    again = runs.create(database, spec, queue="trainer", idempotency=_key())
    assert first.run_id == again.run_id
    assert _ids(runs.list_(database)) == [first.run_id]


def test_the_same_key_with_another_body_is_refused(database: Database, spec: TrainSpec) -> None:
    runs.create(database, spec, queue="trainer", idempotency=_key("a"))
    with pytest.raises(FieldError) as caught:
        runs.create(database, spec, queue="trainer", idempotency=_key("b"))
    assert caught.value.field == "Idempotency-Key"
    assert len(runs.list_(database).items) == 1


def test_the_same_key_many_times_at_once_gives_one_run(database: Database, spec: TrainSpec) -> None:
    together = threading.Barrier(8)

    def post(_number: int) -> str:
        together.wait(10)
        return runs.create(database, spec, queue="trainer", idempotency=_key()).run_id

    with ThreadPoolExecutor(8) as pool:
        created = set(pool.map(post, range(8)))
    assert len(created) == 1
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(JobRow)) == 1


def test_a_run_that_is_refused_leaves_its_key_free(
    database: Database, another_run: AnotherRun, spec: TrainSpec
) -> None:
    missing = TrainSpec(corpus_file_id="f" * 64, corpus_sha256="f" * 64)
    with pytest.raises(CorpusNotFound, match="ffff"):
        runs.create(database, missing, queue="trainer", idempotency=_key())
    assert runs.create(database, spec, queue="trainer", idempotency=_key("b")).spec == spec


def test_a_run_reads_an_uploaded_corpus(database: Database, another_run: AnotherRun) -> None:
    corpora.add(database, "c" * 64, 10, 1)
    run_id = another_run(corpus_file_id="c" * 64, corpus_path=None)
    assert runs.get(database, run_id).spec.corpus_file_id == "c" * 64
