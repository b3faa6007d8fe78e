"""Talking with a finished model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import redis
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.api.conftest import ON_BOTH_DATABASES
from trainer_app.api.chat import MAX_TURNS
from trainer_app.chat_sessions import ChatSessions, Turn
from trainer_app.core.chat_spec import ChatSpec
from trainer_app.events import connect
from trainer_app.settings import Settings
from trainer_app.store import lease
from trainer_app.store.tables import Status
from trainer_app.wishes import cancelled_key

if TYPE_CHECKING:
    from tests.api.conftest import World

Body = dict[str, object]


@pytest.fixture
def run_id(world: World) -> str:
    """A completed run with a model."""
    run_id = world.run(Status.COMPLETED, user_id=7)
    world.model(run_id)
    return run_id


def say(client: FlaskClient, run_id: str, message: str = "a", **fields: object) -> TestResponse:
    return client.post(f"/runs/{run_id}/chat", json={"message": message, **fields})


def answer(world: World, reply: Body, response: str = "b") -> None:
    """Answer a turn as a worker does."""
    request_id, session_id = str(reply["request_id"]), str(reply["session_id"])
    turn = Turn(request_id=request_id, message="a", response=response)
    with connect(world.settings) as client:
        ChatSessions(client).put(session_id, turn)
    world.end(request_id, Status.COMPLETED, json.dumps({"response": response}))


def code(response: TestResponse) -> tuple[int, str]:
    return response.status_code, response.get_json()["code"]


def test_a_message_begins_a_chat(client: FlaskClient, world: World, run_id: str) -> None:
    response = say(client, run_id, "What did the king do?")
    assert response.status_code == 202
    made = response.get_json()
    session_id, request_id = made["session_id"], made["request_id"]
    assert made == {
        "session_id": session_id,
        "request_id": request_id,
        "status": "queued",
        "response": None,
        "error": None,
    }
    place = f"/runs/{run_id}/chat/{session_id}/{request_id}"
    assert response.headers["Location"] == place
    assert client.get(place).get_json() == made
    claim = world.claim(request_id)
    assert (claim.kind, claim.user_id, claim.queue) == ("chat", 7, "trainer.inference")
    assert ChatSpec.from_json(claim.spec) == ChatSpec(
        session_id=session_id, message="What did the king do?"
    )


def test_the_defaults_of_a_chat_are_those_of_the_contract() -> None:
    spec = ChatSpec(message="a")
    assert (spec.max_new_tokens, spec.temperature, spec.top_k, spec.top_p, spec.seed) == (
        128,
        0.8,
        50,
        0.95,
        None,
    )


def test_every_field_of_a_chat_reaches_the_spec(
    client: FlaskClient, world: World, run_id: str
) -> None:
    asked: Body = {
        "max_new_tokens": 1_024,
        "temperature": 2,
        "top_k": 0,
        "top_p": 0.5,
        "seed": 2**32 - 1,
    }
    made = say(client, run_id, "a\nb", session_id=None, **asked).get_json()
    spec = json.loads(world.claim(made["request_id"]).spec)
    assert spec == {**asked, "message": "a\nb", "session_id": made["session_id"]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"message": ""}, "message"),
        ({"message": "x" * 16_385}, "message"),
        ({"message": 1}, "message"),
        ({"message": "a\0"}, "message"),
        ({"session_id": ""}, "session_id"),
        ({"session_id": "x" * 129}, "session_id"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1_025}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": 2**32}, "seed"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_a_bad_field_of_a_chat_is_named(
    client: FlaskClient, run_id: str, change: Body, field: str
) -> None:
    response = client.post(f"/runs/{run_id}/chat", json={"message": "a"} | change)
    assert response.status_code == 422
    assert response.get_json()["details"][0]["field"] == field
    assert client.post(f"/runs/{run_id}/chat", json={}).status_code == 422


@ON_BOTH_DATABASES
def test_a_chat_shows_what_was_said_in_order(
    client: FlaskClient, world: World, run_id: str
) -> None:
    first = say(client, run_id).get_json()
    place = f"/runs/{run_id}/chat/{first['session_id']}"
    assert client.get(place).get_json()["messages"] == [{"role": "user", "content": "a"}]
    answer(world, first, "<b>")
    second = say(client, run_id, "c", session_id=first["session_id"]).get_json()
    assert second["session_id"] == first["session_id"]
    chat = client.get(place).get_json()
    assert isinstance(chat.pop("created_at"), float)
    assert chat == {
        "session_id": first["session_id"],
        "run_id": run_id,
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "<b>"},
            {"role": "user", "content": "c"},
        ],
    }
    reply = client.get(f"{place}/{first['request_id']}").get_json()
    assert (reply["status"], reply["response"]) == ("completed", "<b>")


@ON_BOTH_DATABASES
def test_one_turn_of_a_chat_is_taken_at_a_time(
    client: FlaskClient, world: World, run_id: str
) -> None:
    first = say(client, run_id).get_json()
    refused = say(client, run_id, session_id=first["session_id"])
    assert code(refused) == (409, "CONFLICT")
    assert "its last message is not answered yet" in refused.get_json()["message"]
    assert say(client, run_id).status_code == 202  # another chat
    answer(world, first)
    assert say(client, run_id, session_id=first["session_id"]).status_code == 202


def test_a_chat_has_so_many_turns_at_most(client: FlaskClient, world: World, run_id: str) -> None:
    made = say(client, run_id).get_json()
    with connect(world.settings) as connection:
        for number in range(MAX_TURNS):
            turn = Turn(request_id=f"chat-{number}", message="a", response="b")
            ChatSessions(connection).put(made["session_id"], turn)
    world.end(made["request_id"], Status.COMPLETED, "{}")
    refused = say(client, run_id, session_id=made["session_id"])
    assert code(refused) == (409, "CONFLICT")
    assert str(MAX_TURNS) in refused.get_json()["message"]


def test_a_chat_belongs_to_its_run(client: FlaskClient, world: World, run_id: str) -> None:
    made = say(client, run_id).get_json()
    other = world.run(Status.COMPLETED)
    world.model(other)
    place = f"/runs/{other}/chat/{made['session_id']}"
    assert code(say(client, other, session_id=made["session_id"])) == (404, "DATA_NOT_FOUND")
    for response in (
        client.get(place),
        client.get(f"{place}/{made['request_id']}"),
        client.delete(place),
    ):
        assert code(response) == (404, "DATA_NOT_FOUND")


def test_a_turn_belongs_to_its_chat(client: FlaskClient, run_id: str) -> None:
    first, second = say(client, run_id).get_json(), say(client, run_id).get_json()
    for request_id in (second["request_id"], "chat-none"):
        response = client.get(f"/runs/{run_id}/chat/{first['session_id']}/{request_id}")
        assert code(response) == (404, "DATA_NOT_FOUND")


def test_unknown_runs_and_chats_are_not_found(client: FlaskClient, run_id: str) -> None:
    for response in (
        say(client, "run-none"),
        client.get("/runs/run-none/chat/session-none"),
        client.get("/runs/run-none/chat/session-none/chat-none"),
        client.delete("/runs/run-none/chat/session-none"),
    ):
        assert code(response) == (404, "RUN_NOT_FOUND")
    for response in (
        say(client, run_id, session_id="session-none"),
        say(client, run_id, session_id="../x"),
        client.get(f"/runs/{run_id}/chat/session-none"),
        client.delete(f"/runs/{run_id}/chat/session-none"),
    ):
        assert code(response) == (404, "DATA_NOT_FOUND")


@pytest.mark.parametrize("status", [Status.RUNNING, Status.FAILED])
def test_a_run_that_has_not_completed_does_not_talk(
    client: FlaskClient, world: World, status: Status
) -> None:
    assert code(say(client, world.run(status))) == (409, "NOT_READY")


@ON_BOTH_DATABASES
def test_a_deleted_chat_is_gone_with_all_that_was_said(
    client: FlaskClient, world: World, run_id: str
) -> None:
    made = say(client, run_id).get_json()
    place = f"/runs/{run_id}/chat/{made['session_id']}"
    answer(world, made)
    waiting = say(client, run_id, session_id=made["session_id"]).get_json()
    assert client.delete(place).status_code == 204
    for response in (
        client.delete(place),
        client.get(place),
        client.get(f"{place}/{made['request_id']}"),
        client.get(f"{place}/{waiting['request_id']}"),
        say(client, run_id, session_id=made["session_id"]),
    ):
        assert code(response) == (404, "DATA_NOT_FOUND")
    with pytest.raises(AssertionError):
        world.claim(waiting["request_id"])


def test_a_chat_deleted_while_it_generates_stops_its_worker(
    client: FlaskClient, world: World, run_id: str
) -> None:
    made = say(client, run_id).get_json()
    claim = world.claim(made["request_id"])
    assert client.delete(f"/runs/{run_id}/chat/{made['session_id']}").status_code == 204
    assert lease.cancel_requested(world.database, claim)
    with connect(world.settings) as connection:
        assert connection.get(cancelled_key(claim.job_id)) == "1"
        late = Turn(request_id=claim.job_id, message="a", response="late")
        assert not ChatSessions(connection).put(made["session_id"], late)
    lease.finish(world.database, claim, "completed", result='{"response": "late"}')
    place = f"/runs/{run_id}/chat/{made['session_id']}"
    for response in (client.get(place), client.get(f"{place}/{made['request_id']}")):
        assert code(response) == (404, "DATA_NOT_FOUND")


def test_a_chat_is_gone_an_hour_after_its_last_turn(
    client: FlaskClient, world: World, run_id: str
) -> None:
    made = say(client, run_id).get_json()
    answer(world, made)
    place = f"/runs/{run_id}/chat/{made['session_id']}"
    with connect(world.settings) as connection:
        [name] = map(str, connection.keys(f"*{made['session_id']}"))
        assert 3_590 < connection.ttl(name) <= 3_600
        connection.pexpire(name, 1)
        while connection.exists(name):
            pass
    for response in (client.get(place), client.get(f"{place}/{made['request_id']}")):
        assert code(response) == (404, "DATA_NOT_FOUND")


def test_without_redis_there_is_no_chat(
    make_client: Callable[[Settings], FlaskClient], settings: Settings, run_id: str
) -> None:
    away = make_client(replace(settings, redis=replace(settings.redis, url="redis://127.0.0.1:1")))
    place = f"/runs/{run_id}/chat/session-1"
    for response in (say(away, run_id), away.get(place), away.delete(place)):
        assert code(response) == (503, "UNAVAILABLE")


def test_a_message_that_was_queued_is_accepted_though_redis_dies_meanwhile(
    client: FlaskClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = redis.Redis.eval

    def dies(self: redis.Redis, *_: object) -> object:
        monkeypatch.setattr(redis.Redis, "eval", evaluated)
        raise redis.ConnectionError

    monkeypatch.setattr(redis.Redis, "eval", dies)
    made = say(client, run_id)
    assert made.status_code == 202
    assert client.get(made.headers["Location"]).get_json()["status"] == "queued"
