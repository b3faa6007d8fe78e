"""The API over rows that were edited by hand into no JSON object: no list and no GET fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest

from tests.api.conftest import ON_BOTH_DATABASES
from tests.damaged import ASKED_LOST, NO_OBJECTS, RESULT_LOST, damage, damage_resolved
from trainer_app.store import runs, tokenizers
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

    from tests.api.conftest import World

Body = dict[str, object]
# By what is asked of the run: the end of its address, a body, and the address of the answer.
REQUESTS: dict[str, Body] = {
    "evaluate": {"split": "test"},
    "generate": {"prompt_text": "a"},
    "score": {"text": "a"},
    "chat": {"message": "a"},
}


@pytest.fixture
def run_id(world: World) -> str:
    """A completed run with a model."""
    run_id = world.run(Status.COMPLETED, user_id=7, tags=["a"])
    world.model(run_id)
    return run_id


def refusal(response: TestResponse) -> tuple[int, str, str]:
    body = response.get_json()
    return response.status_code, body["code"], body["message"]


@ON_BOTH_DATABASES
@pytest.mark.parametrize("text", NO_OBJECTS)
def test_runs_are_listed_and_shown(
    client: FlaskClient, world: World, run_id: str, text: str
) -> None:
    whole = client.get(f"/runs/{run_id}").get_json()
    world.run()
    damage(world.database, run_id, spec=text, result=text)
    damage_resolved(world.database, run_id, text)

    assert client.get(f"/runs/{run_id}").get_json() == whole | {"spec": None}
    first, second = client.get("/runs").get_json()["data"]
    assert first["spec"]["model_family"] == "gpt2"
    assert second == whole | {"spec": None}
    assert client.get("/runs?tag=a").get_json()["data"] == [second]


def test_the_rest_of_a_damaged_run_is_there(client: FlaskClient, world: World, run_id: str) -> None:
    world.log(run_id, b'{"event": "begun"}\n')
    damage(world.database, run_id, spec="{")

    for address in ("metrics", "logs", "artifact"):
        assert client.get(f"/runs/{run_id}/{address}").status_code == 200
    assert client.get(f"/runs/{run_id}/eval").status_code == 404
    assert client.post(f"/runs/{run_id}/cancel").get_json()["code"] == "ALREADY_FINISHED"


@pytest.mark.parametrize("what", REQUESTS)
def test_a_model_is_not_used_whose_run_cannot_be_read(
    client: FlaskClient, world: World, run_id: str, what: str
) -> None:
    damage(world.database, run_id, spec="[]")

    response = client.post(f"/runs/{run_id}/{what}", json=REQUESTS[what])

    assert refusal(response) == (409, "NOT_READY", f"{run_id}: {ASKED_LOST}")


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_a_run_does_not_start_from_one_that_cannot_be_read(
    client: FlaskClient, world: World, body: Body, text: str
) -> None:
    base = world.run(Status.COMPLETED, model_size="tiny")
    tuned = world.run(Status.COMPLETED, model_size="tiny", pretrained_run_id=base)
    damage(world.database, base, spec=text)

    for named in (base, tuned):  # the first has the context of both
        response = client.post("/runs/train", json=body | {"pretrained_run_id": named})
        said = f"pretrained_run_id: {base}: {ASKED_LOST}"
        assert refusal(response) == (409, "NOT_READY", said)


@ON_BOTH_DATABASES
@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_a_run_that_cannot_be_read_is_not_resumed(
    client: FlaskClient, world: World, status: Status
) -> None:
    run_id = world.run(status)
    damage(world.database, run_id, spec="null")

    response = client.post(f"/runs/{run_id}/resume", headers={"Idempotency-Key": "k"})

    assert refusal(response) == (409, "NOT_READY", f"{run_id}: {ASKED_LOST}")
    assert client.get(f"/runs/{run_id}").get_json()["status"] == status


@ON_BOTH_DATABASES
@pytest.mark.parametrize(("column", "lost"), [("spec", ASKED_LOST), ("result", RESULT_LOST)])
@pytest.mark.parametrize("text", NO_OBJECTS)
def test_a_tokenizer_is_listed_and_not_used(
    client: FlaskClient, world: World, body: Body, column: str, lost: str, text: str
) -> None:
    name = str(body["tokenizer_id"])
    whole = client.get(f"/tokenizers/{name}").get_json()
    damage(world.database, client_job(world, name), **{column: text})

    unknown: Body = {"vocab_size": None, "oov_rate": None} if column == "result" else {}
    shown = client.get(f"/tokenizers/{name}").get_json()
    assert shown == whole | unknown | {"error": f"NOT_READY: {lost}"}
    assert client.get("/tokenizers").get_json()["data"] == [shown]
    said = f"tokenizer_id: {name}: {lost}"
    assert refusal(client.post("/runs/train", json=body)) == (409, "NOT_READY", said)


def client_job(world: World, name: str) -> str:
    return tokenizers.get(world.database, name).job_id


@ON_BOTH_DATABASES
@pytest.mark.parametrize("what", REQUESTS)
@pytest.mark.parametrize("column", ["spec", "result"])
@pytest.mark.parametrize("text", NO_OBJECTS)
def test_a_request_is_shown(
    client: FlaskClient, world: World, run_id: str, what: str, column: str, text: str
) -> None:
    made = client.post(f"/runs/{run_id}/{what}", json=REQUESTS[what])
    location, job_id = made.headers["Location"], made.get_json()["request_id"]
    queued = client.get(location).get_json()
    world.end(job_id, Status.COMPLETED, "{}")
    damage(world.database, job_id, **{column: text})

    error = None
    if column == "result":
        error = f"NOT_READY: {RESULT_LOST}"
    elif what == "evaluate":  # which alone shows what was asked
        error = f"NOT_READY: {ASKED_LOST}"
    shown = client.get(location).get_json()
    assert shown == queued | {"status": "completed", "error": error}


def test_a_repeat_gets_its_first_answer(client: FlaskClient, world: World, run_id: str) -> None:
    def ask() -> TestResponse:
        body = {"split": "test"}
        headers = {"Idempotency-Key": "k"}
        return client.post(f"/runs/{run_id}/evaluate", json=body, headers=headers)

    first = ask().get_json()
    damage(world.database, run_id, spec="3")
    damage(world.database, first["request_id"], result="3")

    assert (ask().status_code, ask().get_json()) == (202, first)


def holding(value: object) -> str:
    """A JSON object in which each result of each kind of request has this value."""
    return json.dumps(dict.fromkeys(RESULTS, value))


RESULTS: Final = (
    *("loss", "perplexity", "bits_per_byte", "artifact_path", "outputs", "steps"),
    *("eos_terminated", "surprisal", "topk", "tokens", "response"),
)


@pytest.mark.parametrize("what", REQUESTS)
@pytest.mark.parametrize(
    "value", ["a", True, 1, [1], [[1]], {"a": []}, "\ud800", ["\ud800"], [None]]
)
def test_a_result_of_other_types_makes_no_answer_that_fails(
    client: FlaskClient, world: World, run_id: str, what: str, value: object
) -> None:
    made = client.post(f"/runs/{run_id}/{what}", json=REQUESTS[what])
    world.end(made.get_json()["request_id"], Status.COMPLETED, "{}")
    damage(world.database, made.get_json()["request_id"], result=holding(value))

    answer = client.get(made.headers["Location"])

    assert answer.status_code == 200
    answer.get_data(as_text=True).encode().decode("ascii")
    if answer.get_json()["error"] is not None:
        assert answer.get_json()["error"] == f"NOT_READY: {RESULT_LOST}"


@pytest.mark.parametrize("what", ["evaluate", "score"])
def test_a_loss_that_is_no_number_is_said_to_be_lost(
    client: FlaskClient, world: World, run_id: str, what: str
) -> None:
    made = client.post(f"/runs/{run_id}/{what}", json=REQUESTS[what])
    world.end(made.get_json()["request_id"], Status.COMPLETED, '{"loss": "abc"}')

    answer = client.get(made.headers["Location"]).get_json()

    assert answer["loss"] is None
    assert answer["error"] == f"NOT_READY: {RESULT_LOST}"


@pytest.mark.parametrize("value", ["\ud800", ["a", "\ud800"]])
def test_half_a_character_in_a_run_is_damage(
    client: FlaskClient, world: World, run_id: str, value: object
) -> None:
    name = "tags" if isinstance(value, list) else "corpus_file_id"
    spec = json.loads(runs.get(world.database, run_id).spec.to_json()) | {name: value}
    damage(world.database, run_id, spec=json.dumps(spec))

    assert client.get(f"/runs/{run_id}").get_json()["spec"] is None
    response = client.post(f"/runs/{run_id}/evaluate", json={"split": "test"})
    assert refusal(response) == (409, "NOT_READY", f"{run_id}: {ASKED_LOST}")
