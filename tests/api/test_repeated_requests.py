"""Requests to a finished model that are sent again with their Idempotency-Key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.api.conftest import ON_BOTH_DATABASES
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World

Body = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A kind of request."""

    body: Body
    other: Body  # of the same kind
    result: Body  # as a worker gives it


KINDS: Final = {
    "generate": Asked(
        body={"prompt_text": "Once"},
        other={"prompt_text": "x"},
        result={"outputs": [" king"], "steps": 3, "eos_terminated": [True]},
    ),
    "evaluate": Asked(body={"split": "test"}, other={}, result={"loss": 1.0, "perplexity": 2.7}),
    "score": Asked(
        body={"text": "ab"}, other={"text": "x"}, result={"loss": 1.0, "perplexity": 2.7}
    ),
    "chat": Asked(body={"message": "a"}, other={"message": "b"}, result={"response": "b"}),
}
OF_A_FILE: Final = {"generate": "prompt_path", "evaluate": "path_override", "score": "path"}


@pytest.fixture
def run_id(world: World) -> str:
    """A completed run with a model."""
    run_id = world.run(Status.COMPLETED)
    world.model(run_id)
    return run_id


def post(client: FlaskClient, run_id: str, kind: str, body: Body) -> TestResponse:
    return client.post(f"/runs/{run_id}/{kind}", json=body, headers={"Idempotency-Key": "k"})


@ON_BOTH_DATABASES
@pytest.mark.parametrize("kind", KINDS)
def test_a_repeat_gets_the_first_answer_and_another_body_is_refused(
    client: FlaskClient, run_id: str, kind: str
) -> None:
    asked = KINDS[kind]
    first, again = (post(client, run_id, kind, asked.body) for _ in range(2))
    assert (again.status_code, again.data) == (202, first.data)
    assert again.headers["Location"] == first.headers["Location"]
    other = post(client, run_id, kind, asked.other)
    assert other.status_code == 422
    assert [detail["field"] for detail in other.get_json()["details"]] == ["Idempotency-Key"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [Status.RUNNING, Status.COMPLETED, Status.FAILED])
def test_a_repeat_gets_the_first_answer_byte_for_byte_also_when_the_request_is_over(
    client: FlaskClient, world: World, run_id: str, kind: str, status: Status
) -> None:
    asked = KINDS[kind]
    first = post(client, run_id, kind, asked.body)
    world.end(first.get_json()["request_id"], status, json.dumps(asked.result))

    again = post(client, run_id, kind, asked.body)

    assert (again.status_code, again.data) == (first.status_code, first.data)
    assert client.get(first.headers["Location"]).get_json()["status"] == status


@pytest.mark.parametrize("kind", OF_A_FILE)
def test_a_repeat_gets_the_first_answer_though_the_file_that_it_names_has_changed(
    client: FlaskClient, world: World, run_id: str, kind: str
) -> None:
    body = {OF_A_FILE[kind]: world.corpus("t.txt", "one")}
    first = post(client, run_id, kind, body)
    world.corpus("t.txt", "another")
    again = post(client, run_id, kind, body)
    assert (again.status_code, again.data) == (202, first.data)


def test_a_repeated_message_says_nothing_twice(client: FlaskClient, run_id: str) -> None:
    made = [post(client, run_id, "chat", {"message": "a"}).get_json() for _ in range(2)]
    chat = client.get(f"/runs/{run_id}/chat/{made[0]['session_id']}").get_json()
    assert len(chat["messages"]) == 1


@ON_BOTH_DATABASES
@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.COMPLETED, Status.FAILED])
def test_a_late_repeat_of_a_message_brings_no_deleted_chat_back(
    client: FlaskClient, world: World, run_id: str, status: Status
) -> None:
    first = post(client, run_id, "chat", {"message": "a"})
    made = first.get_json()
    world.end(made["request_id"], status, json.dumps({"response": "b"}))
    chat = f"/runs/{run_id}/chat/{made['session_id']}"
    assert client.delete(chat).status_code == 204

    again = post(client, run_id, "chat", {"message": "a"})

    assert (again.status_code, again.data) == (202, first.data)
    for path in (chat, first.headers["Location"]):
        assert client.get(path).get_json()["code"] == "DATA_NOT_FOUND"
    with pytest.raises(AssertionError):
        world.claim(made["request_id"])
    other = post(client, run_id, "chat", {"message": "b"})
    assert other.status_code == 422  # of the key
