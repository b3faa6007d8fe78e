"""Asking a finished model to go on with a text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.api.conftest import ON_BOTH_DATABASES
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World

Body = dict[str, object]


@pytest.fixture
def run_id(world: World) -> str:
    """A completed run with a model."""
    run_id = world.run(Status.COMPLETED, user_id=7)
    world.model(run_id)
    return run_id


def generate(client: FlaskClient, run_id: str, body: Body, **headers: str) -> TestResponse:
    return client.post(f"/runs/{run_id}/generate", json=body, headers=list(headers.items()))


def asked_for(world: World, request_id: str) -> GenerateSpec:
    return GenerateSpec.from_json(world.claim(request_id).spec)


@ON_BOTH_DATABASES
def test_a_prompt_is_accepted_and_queued(client: FlaskClient, world: World, run_id: str) -> None:
    response = generate(client, run_id, {"prompt_text": "Once"})
    assert response.status_code == 202
    made = response.get_json()
    request_id = made.pop("request_id")
    assert made == {
        "status": "queued",
        "outputs": None,
        "steps": None,
        "eos_terminated": None,
        "error": None,
    }
    assert response.headers["Location"] == f"/runs/{run_id}/generate/{request_id}"
    assert client.get(response.headers["Location"]).get_json() == {"request_id": request_id, **made}
    claim = world.claim(request_id)
    assert (claim.run_id, claim.user_id, claim.queue) == (run_id, 7, "trainer.inference")


def test_the_defaults_are_those_of_the_contract(
    client: FlaskClient, world: World, run_id: str
) -> None:
    request_id = generate(client, run_id, {"prompt_text": ""}).get_json()["request_id"]
    assert asked_for(world, request_id) == GenerateSpec(prompt_text="")


def test_every_field_reaches_the_spec(client: FlaskClient, world: World, run_id: str) -> None:
    asked: Body = {
        "prompt_text": "a\nb",
        "max_new_tokens": 1_024,
        "temperature": 2,
        "top_k": 0,
        "top_p": 0.5,
        "stop_on_eos": False,
        "stop_sequences": ["\n\n"],
        "seed": 2**32 - 1,
        "num_return_sequences": 16,
    }
    request_id = generate(client, run_id, asked).get_json()["request_id"]
    spec = json.loads(asked_for(world, request_id).to_json())
    assert spec == asked


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt_text": None}, "prompt_text"),
        ({"prompt_path": "p.txt"}, "prompt_text"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1_025}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"num_return_sequences": 0}, "num_return_sequences"),
        ({"num_return_sequences": 17}, "num_return_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"stop_on_eos": 1}, "stop_on_eos"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_a_bad_field_is_named(client: FlaskClient, run_id: str, change: Body, field: str) -> None:
    response = generate(client, run_id, {"prompt_text": "a"} | change)
    assert response.status_code == 422
    assert response.get_json()["details"][0]["field"] == field


def test_a_prompt_may_come_from_a_file(client: FlaskClient, world: World, run_id: str) -> None:
    world.corpus("prompts/p.txt", "Es war einmal ein König")
    asked: Body = {"prompt_path": "prompts/p.txt"}
    request_id = generate(client, run_id, asked).get_json()["request_id"]
    assert asked_for(world, request_id).prompt_text == "Es war einmal ein König"


def test_a_byte_order_mark_before_a_prompt_in_a_file_is_no_part_of_it(
    client: FlaskClient, world: World, run_id: str
) -> None:
    world.corpus("p.txt")
    (world.settings.paths.corpus / "p.txt").write_bytes(b"\xef\xbb\xbfOnce")
    request_id = generate(client, run_id, {"prompt_path": "p.txt"}).get_json()["request_id"]
    assert asked_for(world, request_id).prompt_text == "Once"


@pytest.mark.parametrize("path", ["none", "../x", "/etc/passwd", "prompts", "link"])
def test_a_prompt_file_that_is_missing_or_forbidden_gets_one_answer(
    client: FlaskClient, world: World, run_id: str, path: str
) -> None:
    world.corpus("prompts/p.txt")
    (world.settings.paths.corpus / "link").symlink_to("/etc/passwd")
    response = generate(client, run_id, {"prompt_path": path})
    assert (response.status_code, response.get_json()["code"]) == (404, "DATA_NOT_FOUND")
    assert response.get_json()["message"].endswith("there is no such file under the corpus root")


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"\xff", "not UTF-8"), (b"a\0b", "NUL"), (b"x" * 1_048_577, "larger than 1048576 bytes")],
)
def test_a_prompt_file_that_is_no_prompt_is_refused(
    client: FlaskClient, world: World, run_id: str, data: bytes, reason: str
) -> None:
    world.corpus("p.txt")
    (world.settings.paths.corpus / "p.txt").write_bytes(data)
    response = generate(client, run_id, {"prompt_path": "p.txt"})
    assert response.status_code == 422
    (detail,) = response.get_json()["details"]
    assert detail["field"] == "prompt_path"
    assert reason in detail["message"]


def test_before_there_are_weights_there_is_nothing_to_ask(
    client: FlaskClient, world: World
) -> None:
    response = generate(client, world.run(), {"prompt_text": "a"})
    assert (response.status_code, response.get_json()["code"]) == (409, "NOT_READY")


def test_an_unknown_run_is_not_found(client: FlaskClient) -> None:
    response = generate(client, "run-none", {"prompt_text": "a"})
    assert (response.status_code, response.get_json()["code"]) == (404, "RUN_NOT_FOUND")
    response = client.get("/runs/run-none/generate/gen-none")
    assert (response.status_code, response.get_json()["code"]) == (404, "RUN_NOT_FOUND")


def test_a_request_belongs_to_its_run(client: FlaskClient, world: World, run_id: str) -> None:
    request_id = generate(client, run_id, {"prompt_text": "a"}).get_json()["request_id"]
    other = world.run()
    for path in (f"/runs/{other}/generate/{request_id}", f"/runs/{run_id}/generate/gen-none"):
        response = client.get(path)
        assert (response.status_code, response.get_json()["code"]) == (404, "DATA_NOT_FOUND")


@ON_BOTH_DATABASES
def test_what_came_of_a_request_is_shown(client: FlaskClient, world: World, run_id: str) -> None:
    request_id = generate(client, run_id, {"prompt_text": "a"}).get_json()["request_id"]
    result = {"outputs": [" king"], "steps": 3, "eos_terminated": [True]}
    world.end(request_id, Status.COMPLETED, json.dumps(result))
    found = client.get(f"/runs/{run_id}/generate/{request_id}").get_json()
    assert found == {"request_id": request_id, "status": "completed", "error": None, **result}


def test_a_failed_request_says_why(client: FlaskClient, world: World, run_id: str) -> None:
    request_id = generate(client, run_id, {"prompt_text": "a"}).get_json()["request_id"]
    world.end(request_id, Status.FAILED)
    found = client.get(f"/runs/{run_id}/generate/{request_id}").get_json()
    assert (found["status"], found["error"]) == ("failed", "TIMED_OUT: over")
