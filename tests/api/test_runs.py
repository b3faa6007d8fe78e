"""Listing, reading and cancelling runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import redis
from flask.testing import FlaskClient

from tests.api.conftest import ON_BOTH_DATABASES
from trainer_app.events import STREAM
from trainer_app.settings import Settings
from trainer_app.store import lease
from trainer_app.store.lease import Progress
from trainer_app.store.tables import Status
from trainer_app.wishes import cancelled_key, up_to_key

if TYPE_CHECKING:
    from tests.api.conftest import World

RUN_FIELDS = {
    "run_id",
    "status",
    "last_heartbeat_ts",
    "message",
    "attempt",
    "paused",
    "progress",
    "epoch",
    "step",
    "total_steps",
    "train_loss",
    "val_loss",
    "tokens_per_sec",
    "eta_sec",
    "loss_chain",
    "loss_chain_step",
    "queue_position",
    "created_at",
    "started_at",
    "completed_at",
    "error_code",
    "spec",
}

pytestmark = ON_BOTH_DATABASES


def test_a_run_shows_where_it_stands(client: FlaskClient, world: World) -> None:
    run_id = world.run()
    claim = world.claim(run_id)
    lease.progress(
        world.database, claim, Progress(step=5, total_steps=10, progress=50, train_loss=1.5)
    )
    run = client.get(f"/runs/{run_id}").get_json()
    assert set(run) == RUN_FIELDS
    assert (run["status"], run["attempt"], run["step"]) == ("running", 1, 5)
    assert (run["progress"], run["total_steps"], run["train_loss"]) == (50, 10, 1.5)
    # PostgreSQL reads its clock for each column: to the microsecond they need not be in order.
    assert run["last_heartbeat_ts"] >= run["started_at"] - 0.01
    assert run["started_at"] >= run["created_at"] - 0.01 > 0
    assert run["completed_at"] is None


def test_a_run_shows_its_whole_request_as_resolved(client: FlaskClient, world: World) -> None:
    run_id = world.run(tags=("a", "b"))
    spec = client.get(f"/runs/{run_id}").get_json()["spec"]
    assert spec["tags"] == ["a", "b"]
    assert spec["corpus_sha256"] == "0" * 64
    assert spec["learning_rate"] == 0.0005


def test_what_was_left_to_the_worker_is_shown_once_it_has_chosen(
    client: FlaskClient, world: World
) -> None:
    run_id = world.run()
    asked = client.get(f"/runs/{run_id}").get_json()["spec"]
    assert (asked["device"], asked["precision"], asked["data_num_workers"]) == (
        "auto",
        "auto",
        None,
    )
    claim = world.claim(run_id)
    choices = {"device": "cuda", "precision": "fp16", "data_num_workers": 4}
    lease.progress(world.database, claim, Progress(resolved=json.dumps(choices)))
    assert client.get(f"/runs/{run_id}").get_json()["spec"] == asked | choices
    [listed] = client.get("/runs").get_json()["data"]
    assert listed["spec"] == asked | choices


def test_a_failed_run_says_why(client: FlaskClient, world: World) -> None:
    run = client.get(f"/runs/{world.run(Status.FAILED)}").get_json()
    assert (run["status"], run["error_code"], run["message"]) == ("failed", "TIMED_OUT", "over")


def test_queued_runs_know_their_place(client: FlaskClient, world: World) -> None:
    first, second = world.run(), world.run()
    places = [client.get(f"/runs/{run}").get_json()["queue_position"] for run in (first, second)]
    assert places == [0, 1]


def test_runs_are_listed_newest_first_in_pages(client: FlaskClient, world: World) -> None:
    made = [world.run() for _ in range(3)]
    first = client.get("/runs?limit=2").get_json()
    assert [run["run_id"] for run in first["data"]] == [made[2], made[1]]
    second = client.get(f"/runs?limit=2&after={first['next']}").get_json()
    assert [run["run_id"] for run in second["data"]] == [made[0]]
    assert (second["has_more"], second["next"]) == (False, None)


@pytest.mark.parametrize(
    "query", ["status=failed", "model_family=char_lstm", "user_id=7", "tag=mine"]
)
def test_runs_are_filtered(client: FlaskClient, world: World, query: str) -> None:
    world.run()
    wanted = world.run(Status.FAILED, model_family="char_lstm", user_id=7, tags=("mine",))
    data = client.get(f"/runs?{query}").get_json()["data"]
    assert [run["run_id"] for run in data] == [wanted]


@pytest.mark.parametrize(
    "query",
    [
        "status=done",
        "model_family=gpt9",
        "user_id=-1",
        "user_id=9223372036854775808",
        "user_id=true",
        "tag=",
        "tag=%00",
        "limit=1e3",
        "limit=%D9%A1",
        "limit=1_0",
        "limit=0x10",
        "limit=+1",
        "limit=1%20",
        "limit=1%00",
        "limit=-0",
        "limit=1.0",
        "limit=[1]",
        "limit[]=1",
        "limit=1;limit=2",
        "limit=1&LIMIT=1",
        "=1",
        "&".join(f"a{number}=1" for number in range(500)),
        "after=" + "0" * 64,
        "after=gen-1",
        "limit=99999999999999999999999",
        "after=",
        "after=../x",
        "Limit=1",
        "status=failed&status=queued",
    ],
)
def test_a_bad_query_is_refused(client: FlaskClient, query: str) -> None:
    response = client.get(f"/runs?{query}")
    assert (response.status_code, response.get_json()["code"]) == (422, "INVALID_INPUT")


@pytest.mark.parametrize("path", ["", "/artifact", "/logs", "/metrics", "/logs/stream"])
def test_an_unknown_run_is_not_found(client: FlaskClient, path: str) -> None:
    response = client.get(f"/runs/run-none{path}")
    assert (response.status_code, response.get_json()["code"]) == (404, "RUN_NOT_FOUND")


def test_a_queued_run_is_cancelled_at_once(client: FlaskClient, world: World) -> None:
    run_id = world.run()
    response = client.post(f"/runs/{run_id}/cancel")
    assert response.get_json() == {"status": "cancellation-requested"}
    assert client.get(f"/runs/{run_id}").get_json()["status"] == "cancelled"
    assert lease.claim(world.database, run_id, "worker", lease_seconds=60) is None


def told(world: World) -> list[dict[str, object]]:
    """The events that the stream holds."""
    with redis.Redis.from_url(world.settings.redis.url, decode_responses=True) as news:
        return [json.loads(entry["event"]) for _, entry in news.xrange(STREAM)]


def test_the_followers_of_a_queued_run_are_told_of_its_cancellation_once(
    client: FlaskClient, world: World
) -> None:
    first, second = world.run(user_id=7), world.run()
    key = [("Idempotency-Key", "one")]
    for run_id, headers in ((first, key), (first, key), (first, []), (second, [])):
        assert client.post(f"/runs/{run_id}/cancel", headers=headers).status_code == 200
    give_up_at = time.monotonic() + 20
    # Events keep their order: whatever the first run had too many would come before.
    while not any(event["job_id"] == second for event in told(world)):
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    assert told(world)[:-1] == [
        {
            "type": "trainer.job.failed.v1",
            "job_id": first,
            "user_id": 7,
            "domain": "trainer",
            "queue": "trainer",
            "error_kind": "user",
            "message": "cancelled",
        }
    ]


def test_the_followers_of_a_running_run_are_left_to_its_worker(
    client: FlaskClient, world: World
) -> None:
    running, queued = world.run(Status.RUNNING), world.run()
    for run_id in (running, queued):
        client.post(f"/runs/{run_id}/cancel")
    give_up_at = time.monotonic() + 20
    while not told(world):
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    assert [event["job_id"] for event in told(world)] == [queued]


def test_a_running_run_is_told_to_stop(client: FlaskClient, world: World) -> None:
    run_id = world.run()
    claim = world.claim(run_id)
    client.post(f"/runs/{run_id}/cancel")
    assert lease.cancel_requested(world.database, claim)
    assert client.get(f"/runs/{run_id}").get_json()["status"] == "running"
    with redis.Redis.from_url(world.settings.redis.url, decode_responses=True) as news:
        assert news.get(cancelled_key(run_id)) == "1"
        assert news.get(up_to_key(run_id)) == str(claim.attempt)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.CANCELLED])
def test_cancelling_twice_answers_the_same(
    client: FlaskClient, world: World, status: Status
) -> None:
    run_id = world.run(status)
    answers = [client.post(f"/runs/{run_id}/cancel") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].get_json() == answers[1].get_json()


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED])
def test_a_finished_run_cannot_be_cancelled(
    client: FlaskClient, world: World, status: Status
) -> None:
    response = client.post(f"/runs/{world.run(status)}/cancel")
    assert (response.status_code, response.get_json()["code"]) == (409, "ALREADY_FINISHED")


def test_an_unknown_run_cannot_be_cancelled(client: FlaskClient) -> None:
    response = client.post("/runs/run-none/cancel")
    assert (response.status_code, response.get_json()["code"]) == (404, "RUN_NOT_FOUND")


def test_a_run_is_cancelled_while_redis_is_away(
    world: World, make_client: Callable[[Settings], FlaskClient]
) -> None:
    away = replace(world.settings.redis, url="redis://127.0.0.1:1/0")
    client = make_client(replace(world.settings, redis=away))
    run_id = world.run()
    assert client.post(f"/runs/{run_id}/cancel").status_code == 200
    assert client.get(f"/runs/{run_id}").get_json()["status"] == "cancelled"


def test_markup_in_a_tag_is_data(client: FlaskClient, world: World) -> None:
    run_id = world.run(tags=("<script>alert(1)</script>\n",))
    response = client.get(f"/runs/{run_id}")
    assert response.mimetype == "application/json"
    assert json.loads(response.text)["spec"]["tags"] == ["<script>alert(1)</script>\n"]
