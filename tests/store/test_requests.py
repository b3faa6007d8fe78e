"""Requests to a finished run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from trainer_app.errors import Conflict, DataNotFound, FieldError
from trainer_app.store import lease, requests, runs
from trainer_app.store.database import Database
from trainer_app.store.idempotency import IdempotencyKey
from trainer_app.store.lease import Claim, JobKind, Status
from trainer_app.store.requests import Request
from trainer_app.store.tables import IdempotencyRow, JobRow

Elapse = Callable[[float], None]


def _key(body: str = "a") -> IdempotencyKey:
    return IdempotencyKey(endpoint="POST /generate", key="key", body_sha256=body * 64)


@pytest.fixture
def request_(database: Database, run_id: str) -> Request:
    """A request that waits."""
    return requests.create(
        database,
        JobKind.GENERATE,
        run_id,
        '{"prompt_text": "a"}',
        queue="trainer.inference",
        user_id=7,
        http_request_id="request-1",
        idempotency=_key(),
    )


def _claim(database: Database, request: Request) -> Claim:
    claim = lease.claim(database, request.request_id, "worker:1", lease_seconds=60)
    assert claim is not None
    return claim


def test_a_request_knows_its_run(database: Database, run_id: str, request_: Request) -> None:
    assert request_ == requests.get(database, JobKind.GENERATE, run_id, request_.request_id)
    assert (request_.run_id, request_.status, request_.result) == (run_id, Status.QUEUED, None)
    claim = _claim(database, request_)
    assert (claim.kind, claim.run_id, claim.user_id) == (JobKind.GENERATE, run_id, 7)
    assert (claim.spec, claim.request_id) == ('{"prompt_text": "a"}', "request-1")


def test_a_finished_request_has_its_result(
    database: Database, run_id: str, request_: Request
) -> None:
    lease.finish(database, _claim(database, request_), "completed", result='{"outputs": []}')
    done = requests.get(database, JobKind.GENERATE, run_id, request_.request_id)
    assert (done.status, done.result) == (Status.COMPLETED, '{"outputs": []}')


def test_a_request_is_found_under_its_own_run_alone(database: Database, request_: Request) -> None:
    with pytest.raises(DataNotFound, match=request_.request_id):
        requests.get(database, JobKind.GENERATE, "run-other", request_.request_id)


def test_requests_are_not_runs(database: Database, run_id: str, request_: Request) -> None:
    assert [run.run_id for run in runs.list_(database).items] == [run_id]


def test_the_same_key_gives_the_same_request(
    database: Database, run_id: str, request_: Request
) -> None:
    def post(key: IdempotencyKey) -> Request:
        return requests.create(
            database, JobKind.GENERATE, run_id, "{}", queue="q", user_id=7, idempotency=key
        )

    assert post(_key()) == request_
    with pytest.raises(FieldError, match="another body"):
        post(_key("b"))


@pytest.mark.parametrize(
    ("status", "seconds"), [("completed", 100), ("failed", 200), ("cancelled", 200)]
)
def test_a_request_is_forgotten_some_time_after_its_end(
    database: Database, run_id: str, request_: Request, elapse: Elapse, status: str, seconds: int
) -> None:
    def purge() -> int:
        return requests.purge(database, completed_seconds=100, failed_seconds=200)

    elapse(10_000)
    assert purge() == 0  # it has not ended
    lease.finish(database, _claim(database, request_), status)
    elapse(seconds - 5)
    assert purge() == 0
    elapse(10)
    assert purge() == 1
    with pytest.raises(DataNotFound):
        requests.get(database, JobKind.GENERATE, run_id, request_.request_id)
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(IdempotencyRow)) == 0


def test_runs_are_never_forgotten(database: Database, claim: Claim, elapse: Elapse) -> None:
    lease.finish(database, claim, "completed")
    elapse(1e9)
    assert requests.purge(database, completed_seconds=1, failed_seconds=1) == 0
    assert runs.get(database, claim.job_id).status is Status.COMPLETED


KINDS = (JobKind.GENERATE, JobKind.SCORE, JobKind.EVALUATE, JobKind.CHAT)


def _ask(
    database: Database,
    run_id: str,
    kind: JobKind = JobKind.CHAT,
    topic: str | None = "session-1",
    key: IdempotencyKey | None = None,
) -> Request:
    return requests.create(
        database, kind, run_id, '{"a": 1}', queue="q", user_id=7, topic=topic, idempotency=key
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_request_is_kept_and_forgotten(
    database: Database, run_id: str, elapse: Elapse, kind: JobKind
) -> None:
    made = _ask(database, run_id, kind)
    assert made == requests.get(database, kind, run_id, made.request_id)
    assert made.topic == "session-1"
    for other in set(KINDS) - {kind}:
        with pytest.raises(DataNotFound):
            requests.get(database, other, run_id, made.request_id)
    lease.finish(database, _claim(database, made), "completed", result="{}")
    elapse(101)
    assert requests.purge(database, completed_seconds=100, failed_seconds=200) == 1


def test_the_latest_request_about_a_topic_is_found(
    database: Database, run_id: str, elapse: Elapse
) -> None:
    def latest(topic: str) -> Request | None:
        return requests.latest(database, JobKind.EVALUATE, run_id, topic)

    assert latest("test") is None
    first = _ask(database, run_id, JobKind.EVALUATE, "test")
    _ask(database, run_id, JobKind.EVALUATE, "validation")
    _ask(database, run_id, JobKind.SCORE, "test")
    assert latest("test") == first
    elapse(1)
    second = _ask(database, run_id, JobKind.EVALUATE, "test")
    assert latest("test") == second


def test_of_one_chat_one_turn_is_live_at_a_time(database: Database, run_id: str) -> None:
    first = _ask(database, run_id)
    _ask(database, run_id, topic="session-2")
    with pytest.raises(Conflict, match="session-1: its last message is not answered yet"):
        _ask(database, run_id, key=_key())
    claim = _claim(database, first)
    with pytest.raises(Conflict):
        _ask(database, run_id, key=_key())
    lease.finish(database, claim, "failed")
    _ask(database, run_id, key=_key())  # the key was not taken by those that were refused


def test_other_requests_about_one_topic_may_be_many(database: Database, run_id: str) -> None:
    for _ in range(3):
        _ask(database, run_id, JobKind.EVALUATE, "test")


def test_what_was_said_in_a_chat_is_forgotten_and_what_runs_is_stopped(
    database: Database, run_id: str
) -> None:
    ended = _ask(database, run_id)
    lease.finish(database, _claim(database, ended), "completed", result='{"response": "b"}')
    running = _ask(database, run_id)
    claim = _claim(database, running)
    others = [_ask(database, run_id, topic="session-2"), _ask(database, run_id, JobKind.SCORE)]

    assert requests.forget(database, JobKind.CHAT, run_id, "session-1") == {running.request_id: 1}

    assert lease.cancel_requested(database, claim)
    with pytest.raises(DataNotFound):
        requests.get(database, JobKind.CHAT, run_id, ended.request_id)
    with database.read() as connection:
        kept = connection.execute(
            select(JobRow.id, JobRow.spec).where(JobRow.run_id == run_id)
        ).all()
    assert {row.id: row.spec for row in kept} == {
        running.request_id: "{}",
        **{other.request_id: '{"a": 1}' for other in others},
    }


@pytest.mark.parametrize("status", ["queued", "running", "completed", "failed"])
def test_of_a_forgotten_message_with_a_key_the_ids_stay_as_long_as_its_key(
    database: Database, run_id: str, elapse: Elapse, status: str
) -> None:
    asked = _ask(database, run_id, key=_key())
    claim = None if status == "queued" else _claim(database, asked)
    if claim is not None and status != "running":
        lease.finish(database, claim, status, result='{"response": "b"}', message="about b")

    requests.forget(database, JobKind.CHAT, run_id, "session-1")
    if claim is not None and status == "running":
        lease.finish(database, claim, "cancelled")

    again = _ask(database, run_id, key=_key())
    assert (again.request_id, again.topic) == (asked.request_id, "session-1")
    assert (again.spec, again.result, again.message) == ("{}", None, "")
    assert again.status == ("cancelled" if status in ("queued", "running") else status)
    assert lease.claim(database, asked.request_id, "worker:1", lease_seconds=60) is None
    _ask(database, run_id)  # it holds up no other turn
    elapse(10)
    assert requests.purge(database, completed_seconds=5, failed_seconds=5) == 1
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(IdempotencyRow)) == 0


def test_a_message_that_waits_is_forgotten_and_never_answered(
    database: Database, run_id: str
) -> None:
    waiting = _ask(database, run_id)
    assert requests.forget(database, JobKind.CHAT, run_id, "session-1") == {}
    assert lease.claim(database, waiting.request_id, "worker:1", lease_seconds=60) is None
