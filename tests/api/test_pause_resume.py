"""Holding runs back, and letting them go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import redis
from flask.testing import FlaskClient

from tests.api.conftest import ON_BOTH_DATABASES, World
from trainer_app.errors import Unavailable
from trainer_app.settings import Settings
from trainer_app.store import lease, pauses
from trainer_app.store.database import Database
from trainer_app.store.tables import Status
from trainer_app.wishes import cancelled_key, keys

pytestmark = ON_BOTH_DATABASES


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING])
def test_a_run_is_paused_and_resumed(client: FlaskClient, world: World, status: Status) -> None:
    run_id = world.run(status)
    for _ in range(2):
        answer = client.post(f"/runs/{run_id}/pause")
        assert (answer.status_code, answer.get_json()["status"]) == (200, status)
    assert client.get(f"/runs/{run_id}").get_json()["paused"] is True

    answer = client.post(f"/runs/{run_id}/resume")

    assert (answer.status_code, answer.get_json()) == (202, {"run_id": run_id, "status": status})
    assert answer.headers["Location"].endswith(f"/runs/{run_id}")
    assert client.get(f"/runs/{run_id}").get_json()["paused"] is False


def test_a_cancelled_run_that_is_resumed_is_not_cancelled_again(
    client: FlaskClient, world: World
) -> None:
    run_id = world.run()
    client.post(f"/runs/{run_id}/cancel")

    assert client.post(f"/runs/{run_id}/resume").status_code == 202

    with redis.Redis.from_url(world.settings.redis.url, decode_responses=True) as news:
        assert not news.exists(*keys(run_id))
    assert lease.claim(world.database, run_id, "worker", lease_seconds=60) is not None


@pytest.mark.parametrize(
    ("move", "status", "code"),
    [
        ("pause", Status.COMPLETED, "ALREADY_FINISHED"),
        ("pause", Status.CANCELLED, "ALREADY_FINISHED"),
        ("resume", Status.COMPLETED, "ALREADY_FINISHED"),
        ("resume", Status.QUEUED, "CONFLICT"),
        ("resume", Status.RUNNING, "CONFLICT"),
    ],
)
def test_what_makes_no_sense_is_a_conflict(
    client: FlaskClient, world: World, move: str, status: Status, code: str
) -> None:
    answer = client.post(f"/runs/{world.run(status)}/{move}")
    assert (answer.status_code, answer.get_json()["code"]) == (409, code)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING])
def test_a_resume_that_is_refused_takes_back_no_cancellation(
    client: FlaskClient, world: World, status: Status
) -> None:
    run_id = world.run(status)
    with redis.Redis.from_url(world.settings.redis.url, decode_responses=True) as news:
        news.set(cancelled_key(run_id), "1")  # as a client may by hand
        assert client.post(f"/runs/{run_id}/resume").status_code == 409
        assert news.get(cancelled_key(run_id)) == "1"


def test_a_resume_that_finds_no_database_takes_back_no_cancellation(
    client: FlaskClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, before: Callable[[], None], **__: object) -> None:
        before()
        raise Unavailable("the database went away at the commit")

    monkeypatch.setattr(pauses, "resume", away)
    run_id = world.run(Status.CANCELLED)
    with redis.Redis.from_url(world.settings.redis.url, decode_responses=True) as news:
        news.set(cancelled_key(run_id), "1")
        assert client.post(f"/runs/{run_id}/resume").status_code == 503
        assert news.get(cancelled_key(run_id)) == "1"
        news.delete(cancelled_key(run_id))
        assert client.post(f"/runs/{run_id}/resume").status_code == 503
        assert news.get(cancelled_key(run_id)) is None


@pytest.mark.parametrize("is_known", [True, False])
def test_a_resume_whose_answer_is_lost_is_not_cancelled_by_what_was_asked_before(
    client: FlaskClient, world: World, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    resume, unless_resumed = pauses.resume, pauses.unless_resumed

    def lose_the_answer(
        db: Database, named: str, *, before: Callable[[], None], **_: object
    ) -> None:
        resume(db, named, before=before)
        raise Unavailable("the connection broke at the commit")

    def look(db: Database, named: str, act: Callable[[], None]) -> None:
        if not is_known:
            raise Unavailable("the database is away or busy")
        unless_resumed(db, named, act)

    monkeypatch.setattr(pauses, "resume", lose_the_answer)
    monkeypatch.setattr(pauses, "unless_resumed", look)
    run_id = world.run(Status.CANCELLED)
    with redis.Redis.from_url(world.settings.redis.url, decode_responses=True) as news:
        news.set(cancelled_key(run_id), "1")
        assert client.post(f"/runs/{run_id}/resume").status_code == 503
        assert not news.exists(*keys(run_id))
    assert client.get(f"/runs/{run_id}").get_json()["status"] == "queued"


@pytest.mark.parametrize("move", ["pause", "resume"])
def test_an_unknown_run_is_not_found(client: FlaskClient, move: str) -> None:
    answer = client.post(f"/runs/run-none/{move}")
    assert (answer.status_code, answer.get_json()["code"]) == (404, "RUN_NOT_FOUND")


@pytest.mark.parametrize("move", ["pause", "cancel"])
def test_a_repeated_stop_does_not_stop_what_was_resumed_since(
    client: FlaskClient, world: World, move: str
) -> None:
    run_id = world.run()
    key = {"Idempotency-Key": "once"}
    first = client.post(f"/runs/{run_id}/{move}", headers=key)
    client.post(f"/runs/{run_id}/resume")

    again = client.post(f"/runs/{run_id}/{move}", headers=key)

    assert (again.status_code, again.get_json()) == (200, first.get_json())
    run = client.get(f"/runs/{run_id}").get_json()
    assert (run["status"], run["paused"]) == ("queued", False)
    assert lease.claim(world.database, run_id, "worker", lease_seconds=60) is not None
    with redis.Redis.from_url(world.settings.redis.url, decode_responses=True) as news:
        assert news.get(cancelled_key(run_id)) is None


def test_a_repeated_resume_takes_back_no_later_cancellation(
    client: FlaskClient, world: World
) -> None:
    run_id = world.run(Status.CANCELLED)
    key = {"Idempotency-Key": "once"}
    first = client.post(f"/runs/{run_id}/resume", headers=key)
    client.post(f"/runs/{run_id}/cancel")

    again = client.post(f"/runs/{run_id}/resume", headers=key)

    assert (again.status_code, again.get_json()) == (202, first.get_json())
    assert again.headers["Location"] == first.headers["Location"]
    assert client.get(f"/runs/{run_id}").get_json()["status"] == "cancelled"
    with redis.Redis.from_url(world.settings.redis.url, decode_responses=True) as news:
        assert news.get(cancelled_key(run_id)) == "1"


@pytest.mark.parametrize("move", ["pause", "resume", "cancel"])
def test_a_move_has_no_body_or_an_empty_one(client: FlaskClient, world: World, move: str) -> None:
    run_id = world.run()
    client.post(f"/runs/{run_id}/pause")
    address = f"/runs/{run_id}/{move}"
    key = {"Idempotency-Key": "once"}
    for bad, status in ((b'{"force": true}', 422), (b"[]", 422), (b"{", 400)):
        answer = client.post(address, data=bad, content_type="application/json", headers=key)
        assert answer.status_code == status
    assert client.post(address, data=b"force", content_type="text/plain").status_code == 415
    assert client.get(f"/runs/{run_id}").get_json()["paused"]
    assert client.post(address, json={}, headers=key).status_code in {200, 202}
    assert client.post(address, headers=key).status_code in {200, 202}
    assert client.post(address, headers={"Idempotency-Key": "a b"}).status_code == 422


def test_nothing_is_resumed_while_redis_is_away(
    world: World, make_client: Callable[[Settings], FlaskClient]
) -> None:
    away = replace(world.settings.redis, url="redis://127.0.0.1:1/0")
    client = make_client(replace(world.settings, redis=away))
    run_id = world.run(Status.CANCELLED)
    assert client.post(f"/runs/{run_id}/resume").status_code == 503
    assert client.get(f"/runs/{run_id}").get_json()["status"] == "cancelled"


def test_a_run_whose_corpus_was_deleted_since_is_not_resumed_unless_a_data_bank_may_have_it(
    client: FlaskClient,
    world: World,
    settings: Settings,
    make_client: Callable[[Settings], FlaskClient],
) -> None:
    file_id = client.post("/corpora", data=b"Once upon a time\n", content_type="text/plain")
    corpus = file_id.get_json()["file_id"]
    run_id = world.run(Status.CANCELLED, corpus_file_id=corpus, corpus_path=None)
    assert client.delete(f"/corpora/{corpus}").status_code == 204

    answer = client.post(f"/runs/{run_id}/resume")

    assert (answer.status_code, answer.get_json()["code"]) == (404, "CORPUS_NOT_FOUND")
    assert client.get(f"/runs/{run_id}").get_json()["status"] == "cancelled"
    bank = replace(settings.data_bank, url="http://127.0.0.1:9")
    remote = make_client(replace(settings, data_bank=bank))
    assert remote.post(f"/runs/{run_id}/resume").status_code == 202
