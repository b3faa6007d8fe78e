"""Holding runs back, and letting them go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import redis
from flask.testing import FlaskClient

from tests.api.conftest import World
from trainer_app.queue import cancelled_key
from trainer_app.settings import Settings
from trainer_app.store import lease
from trainer_app.store.tables import Status


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
        assert news.get(cancelled_key(run_id)) is None
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


@pytest.mark.parametrize("move", ["pause", "resume"])
def test_an_unknown_run_is_not_found(client: FlaskClient, move: str) -> None:
    answer = client.post(f"/runs/run-none/{move}")
    assert (answer.status_code, answer.get_json()["code"]) == (404, "RUN_NOT_FOUND")


def test_nothing_is_resumed_while_redis_is_away(
    world: World, make_client: Callable[[Settings], FlaskClient]
) -> None:
    away = replace(world.settings.redis, url="redis://127.0.0.1:1/0")
    client = make_client(replace(world.settings, redis=away))
    run_id = world.run(Status.CANCELLED)
    assert client.post(f"/runs/{run_id}/resume").status_code == 503
    assert client.get(f"/runs/{run_id}").get_json()["status"] == "cancelled"
