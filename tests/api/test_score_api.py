"""Asking a finished model how well it predicts a text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from trainer_app.api.fields import LONGEST_TEXT
from trainer_app.core.score_spec import ScoreSpec
from trainer_app.queue import LONG_TEXT
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World

Body = dict[str, object]
NOTHING = {"loss": None, "perplexity": None, "surprisal": None, "topk": None, "tokens": None}


@pytest.fixture
def run_id(world: World) -> str:
    """A completed run with a model."""
    run_id = world.run(Status.COMPLETED, user_id=7)
    world.model(run_id)
    return run_id


def score(client: FlaskClient, run_id: str, body: Body, **headers: str) -> TestResponse:
    return client.post(f"/runs/{run_id}/score", json=body, headers=list(headers.items()))


def asked_for(world: World, response: TestResponse) -> ScoreSpec:
    return ScoreSpec.from_json(world.claim(response.get_json()["request_id"]).spec)


def test_a_text_is_accepted_and_queued(client: FlaskClient, world: World, run_id: str) -> None:
    response = score(client, run_id, {"text": "Once"})
    assert response.status_code == 202
    made = response.get_json()
    request_id = made.pop("request_id")
    assert made == {"status": "queued", "error": None, **NOTHING}
    assert response.headers["Location"] == f"/runs/{run_id}/score/{request_id}"
    assert client.get(response.headers["Location"]).get_json() == {"request_id": request_id, **made}
    claim = world.claim(request_id)
    assert (claim.kind, claim.user_id, claim.queue) == ("score", 7, "trainer.inference")
    assert ScoreSpec.from_json(claim.spec) == ScoreSpec(text="Once")


def test_no_chat_waits_behind_the_score_of_a_long_text(
    client: FlaskClient, world: World, run_id: str
) -> None:
    queues = [
        world.claim(score(client, run_id, {"text": "a" * length}).get_json()["request_id"]).queue
        for length in (LONG_TEXT, LONG_TEXT + 1)
    ]
    assert queues == ["trainer.inference", "trainer.light"]


def test_every_field_of_a_score_reaches_the_spec(
    client: FlaskClient, world: World, run_id: str
) -> None:
    asked: Body = {"text": "a\nb", "detail_level": "per_char", "top_k": 100, "seed": 2**32 - 1}
    assert json.loads(asked_for(world, score(client, run_id, asked)).to_json()) == asked


def test_the_longest_text_fits_into_a_body_whatever_its_characters(
    client: FlaskClient, world: World, run_id: str
) -> None:
    body = json.dumps({"text": "\U0001f451" * LONGEST_TEXT}, ensure_ascii=False).encode()
    address = f"/runs/{run_id}/score"
    answer = client.post(address, data=body, content_type="application/json")
    assert answer.status_code == 202
    assert len(asked_for(world, answer).text) == LONGEST_TEXT
    answer = score(client, run_id, {"text": "x" * (LONGEST_TEXT + 1)})
    (detail,) = answer.get_json()["details"]
    assert detail["message"] == "must have 1 to 1048576 characters, not 1048577"


def test_a_text_may_come_from_a_file(client: FlaskClient, world: World, run_id: str) -> None:
    world.corpus("texts/t.txt", "Es war einmal ein König")
    asked = asked_for(world, score(client, run_id, {"path": "texts/t.txt"}))
    assert asked.text == "Es war einmal ein König"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text": None}, "text"),
        ({"path": "p.txt"}, "text"),
        ({"text": "a\0b"}, "text"),
        ({"text": ""}, "text"),
        ({"detail_level": "per_word"}, "detail_level"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 101}, "top_k"),
        ({"top_k": 1.9}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"prompt_text": "x"}, "prompt_text"),
    ],
)
def test_a_bad_field_of_a_score_is_named(
    client: FlaskClient, run_id: str, change: Body, field: str
) -> None:
    response = score(client, run_id, {"text": "a"} | change)
    assert response.status_code == 422
    assert response.get_json()["details"][0]["field"] == field


def test_an_empty_file_has_nothing_to_score(client: FlaskClient, world: World, run_id: str) -> None:
    response = score(client, run_id, {"path": world.corpus("empty.txt", "")})
    assert response.status_code == 422
    assert response.get_json()["details"] == [{"field": "path", "message": "the file is empty"}]


@pytest.mark.parametrize("path", ["none", "../x", "/etc/passwd", "texts", "link", "a\\b", "C:x"])
def test_a_file_to_score_that_is_missing_or_forbidden_gets_one_answer(
    client: FlaskClient, world: World, run_id: str, path: str
) -> None:
    world.corpus("texts/t.txt")
    (world.settings.paths.corpus / "link").symlink_to("/etc/passwd")
    response = score(client, run_id, {"path": path})
    assert (response.status_code, response.get_json()["code"]) == (404, "DATA_NOT_FOUND")
    assert response.get_json()["message"] == ("path: there is no such file under the corpus root")


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.FAILED, Status.CANCELLED])
def test_a_run_that_has_not_completed_scores_nothing(
    client: FlaskClient, world: World, status: Status
) -> None:
    run_id = world.run(status)
    world.model(run_id)  # left by an attempt that was lost in its last moment
    response = score(client, run_id, {"text": "ab"})
    assert (response.status_code, response.get_json()["code"]) == (409, "NOT_READY")


def test_a_run_without_its_files_scores_nothing(client: FlaskClient, world: World) -> None:
    response = score(client, world.run(Status.COMPLETED), {"text": "ab"})
    assert (response.status_code, response.get_json()["code"]) == (409, "MODEL_INCOMPATIBLE")


def test_an_unknown_run_or_score_is_not_found(client: FlaskClient, run_id: str) -> None:
    for response in (
        score(client, "run-none", {"text": "a"}),
        client.get("/runs/run-none/score/score-none"),
    ):
        assert (response.status_code, response.get_json()["code"]) == (404, "RUN_NOT_FOUND")
    response = client.get(f"/runs/{run_id}/score/score-none")
    assert (response.status_code, response.get_json()["code"]) == (404, "DATA_NOT_FOUND")


def test_a_generation_is_no_score(client: FlaskClient, run_id: str) -> None:
    made = client.post(f"/runs/{run_id}/generate", json={"prompt_text": "a"}).get_json()
    response = client.get(f"/runs/{run_id}/score/{made['request_id']}")
    assert (response.status_code, response.get_json()["code"]) == (404, "DATA_NOT_FOUND")


def test_what_came_of_a_score_is_shown(client: FlaskClient, world: World, run_id: str) -> None:
    request_id = score(client, run_id, {"text": "ab"}).get_json()["request_id"]
    candidate = {"token": "b", "token_id": 5, "probability": 0.25, "bits": 2.0}
    result = {
        "loss": 1.5,
        "perplexity": 4.5,
        "surprisal": [2.0],
        "topk": [[candidate]],
        "tokens": ["a", "b"],
    }
    world.end(request_id, Status.COMPLETED, json.dumps(result))
    found = client.get(f"/runs/{run_id}/score/{request_id}").get_json()
    assert found == {"request_id": request_id, "status": "completed", "error": None, **result}


def test_a_failed_score_says_why_and_has_no_figures(
    client: FlaskClient, world: World, run_id: str
) -> None:
    request_id = score(client, run_id, {"text": "a"}).get_json()["request_id"]
    world.end(request_id, Status.FAILED)
    found = client.get(f"/runs/{run_id}/score/{request_id}").get_json()
    assert (found["status"], found["error"]) == ("failed", "TIMED_OUT: over")
    assert {name: found[name] for name in NOTHING} == NOTHING
