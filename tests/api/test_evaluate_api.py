"""Asking how well a finished model predicts held-out text."""

from __future__ import annotations

import json
import math
import os
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.api.conftest import ON_BOTH_DATABASES
from trainer_app import artifacts
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.store import requests
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World

Body = dict[str, object]
NOTHING = {"loss": None, "perplexity": None, "bits_per_byte": None, "artifact_path": None}
KEPT: Body = {
    "run_id": "RUN",
    "split": "validation",
    "path_override": None,
    "request_id": "evaluate-1",
    "status": "completed",
    "loss": 1.5,
    "perplexity": 4.5,
    "bits_per_byte": 0.75,
    "artifact_path": "/a.json",
    "tokens": 9,
    "error": None,
}
OTHERS: dict[str, list[object]] = {
    "run_id": ["another", None, ["RUN"]],
    "split": ["test", None, ["validation"]],
    "path_override": [True, ["other.txt"]],
    "request_id": [None, 1],
    "status": ["queued", None, True, ["completed"]],
    "loss": ["1.5", None, True, [], math.nan, math.inf, 10**400],
    "perplexity": ["1", None, False, [4.5]],
    "bits_per_byte": ["0.75", None, True, {}],
    "artifact_path": [None, 1, ["/a.json"]],
    "error": ["none", False],
}
DAMAGED = [
    *("{", "[]", "{}", "[" * 100_000),
    *(json.dumps({**KEPT, name: value}) for name, values in OTHERS.items() for value in values),
    *(json.dumps({key: KEPT[key] for key in KEPT if key != name}) for name in OTHERS),
]


@pytest.fixture
def run_id(world: World) -> str:
    """A completed run with a model."""
    run_id = world.run(Status.COMPLETED, user_id=7)
    world.model(run_id)
    return run_id


def evaluate(client: FlaskClient, run_id: str, body: Body, **headers: str) -> TestResponse:
    return client.post(f"/runs/{run_id}/evaluate", json=body, headers=list(headers.items()))


def shown(client: FlaskClient, run_id: str, split: str) -> dict[str, object]:
    found: dict[str, object] = client.get(f"/runs/{run_id}/eval?split={split}").get_json()
    return found


@pytest.mark.parametrize(
    ("body", "split"), [({}, "validation"), ({"path_override": None, "split": "test"}, "test")]
)
def test_an_evaluation_is_accepted_and_queued(
    client: FlaskClient, world: World, run_id: str, body: Body, split: str
) -> None:
    response = evaluate(client, run_id, body)
    assert response.status_code == 202
    made = response.get_json()
    assert made == {
        "run_id": run_id,
        "split": split,
        "request_id": made["request_id"],
        "status": "queued",
        "path_override": None,
        "error": None,
        **NOTHING,
    }
    assert response.headers["Location"] == f"/runs/{run_id}/eval?split={split}"
    assert client.get(response.headers["Location"]).get_json() == made
    claim = world.claim(str(made["request_id"]))
    assert (claim.kind, claim.user_id, claim.queue) == ("evaluate", 7, "trainer.light")
    assert EvaluateSpec.from_json(claim.spec) == EvaluateSpec.from_fields({"split": split})


def test_validation_is_the_split_that_is_shown_when_none_is_named(
    client: FlaskClient, run_id: str
) -> None:
    made = evaluate(client, run_id, {}).get_json()
    assert client.get(f"/runs/{run_id}/eval").get_json() == made


@pytest.mark.parametrize("query", ["split=train", "split=", "split=test&split=test", "spilt=test"])
def test_a_split_that_is_none_is_refused(client: FlaskClient, run_id: str, query: str) -> None:
    assert client.get(f"/runs/{run_id}/eval?{query}").status_code == 422


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"split": "train"}, "split"),
        ({"split": None}, "split"),
        ({"path_override": ""}, "path_override"),
        ({"path_override": 1}, "path_override"),
        ({"path": "a.txt"}, "path"),
    ],
)
def test_a_bad_field_of_an_evaluation_is_named(
    client: FlaskClient, run_id: str, body: Body, field: str
) -> None:
    response = evaluate(client, run_id, body)
    assert response.status_code == 422
    assert response.get_json()["details"][0]["field"] == field


@ON_BOTH_DATABASES
def test_the_last_evaluation_of_each_split_is_shown(
    client: FlaskClient, world: World, run_id: str
) -> None:
    result = {"loss": 1.5, "perplexity": 4.5, "bits_per_byte": 0.75, "artifact_path": "/a.json"}
    first = evaluate(client, run_id, {"split": "test"}).get_json()
    world.end(first["request_id"], Status.COMPLETED, json.dumps(result))
    assert shown(client, run_id, "test") == {**first, "status": "completed", **result}
    second = evaluate(client, run_id, {"split": "test"}).get_json()
    assert shown(client, run_id, "test") == second
    world.end(second["request_id"], Status.FAILED)
    failed = shown(client, run_id, "test")
    assert (failed["status"], failed["error"], failed["loss"]) == (
        "failed",
        "TIMED_OUT: over",
        None,
    )


def test_where_none_was_asked_for_there_is_no_evaluation(client: FlaskClient, run_id: str) -> None:
    evaluate(client, run_id, {})
    response = client.get(f"/runs/{run_id}/eval?split=test")
    assert (response.status_code, response.get_json()["code"]) == (404, "EVAL_NOT_FOUND")


def test_an_evaluation_outlives_its_request(client: FlaskClient, world: World, run_id: str) -> None:
    made = evaluate(client, run_id, {}).get_json()
    world.end(made["request_id"], Status.COMPLETED, "{}")
    measured = {"loss": 2.5, "perplexity": 12, "bits_per_byte": 1e-300, "artifact_path": "/a.json"}
    kept = {**made, "status": "completed", **measured}
    file = artifacts.evaluation_file(world.settings, run_id, "validation")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(kept))
    assert requests.purge(world.database, completed_seconds=-1, failed_seconds=-1) == 1
    assert shown(client, run_id, "validation") == kept


def keep(world: World, made: Body) -> Body:
    """Let an evaluation complete, and its request be forgotten sooner than those that failed."""
    measured = {"loss": 2.5, "perplexity": 12, "bits_per_byte": 1.5, "artifact_path": "/a.json"}
    kept = {**made, "status": "completed", **measured}
    file = artifacts.evaluation_file(world.settings, str(made["run_id"]), "validation")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(kept))
    world.end(str(made["request_id"]), Status.COMPLETED, "{}")
    assert requests.purge(world.database, completed_seconds=-1, failed_seconds=1e9) == 1
    return kept


def test_what_was_measured_last_is_shown_though_one_before_that_failed_is_remembered(
    client: FlaskClient, world: World, run_id: str
) -> None:
    world.end(evaluate(client, run_id, {}).get_json()["request_id"], Status.FAILED)
    time.sleep(0.002)  # ids sort by age, in milliseconds
    kept = keep(world, evaluate(client, run_id, {}).get_json())
    assert shown(client, run_id, "validation") == kept

    time.sleep(0.002)
    third = evaluate(client, run_id, {}).get_json()
    assert shown(client, run_id, "validation") == third
    world.end(third["request_id"], Status.FAILED)
    assert shown(client, run_id, "validation")["error"] == "TIMED_OUT: over"


def test_an_evaluation_that_is_remembered_is_shown_beside_a_damaged_file(
    client: FlaskClient, world: World, run_id: str
) -> None:
    made = evaluate(client, run_id, {}).get_json()
    file = artifacts.evaluation_file(world.settings, run_id, "validation")
    file.parent.mkdir(parents=True)
    file.write_text("{")

    assert shown(client, run_id, "validation") == made


def test_the_corpus_of_a_run_is_not_deleted_before_its_evaluation_has_ended(
    client: FlaskClient, world: World
) -> None:
    text = b"Once upon a time.\n" * 9
    file_id = client.post("/corpora", data=text, content_type="text/plain").get_json()["file_id"]
    run_id = world.run(Status.COMPLETED, corpus_file_id=file_id, corpus_path=None)
    world.model(run_id)
    world.settings.paths.corpus.mkdir(parents=True)
    other = world.settings.paths.corpus / "other.txt"
    other.write_text("another text\n" * 9)
    evaluate(client, run_id, {"path_override": "other.txt"})
    made = evaluate(client, run_id, {}).get_json()

    refused = client.delete(f"/corpora/{file_id}")

    assert (refused.status_code, refused.get_json()["code"]) == (409, "CONFLICT")
    assert refused.get_json()["message"] == (
        f"{file_id}: {made['request_id']} still reads this corpus"
    )
    world.end(made["request_id"], Status.COMPLETED, "{}")
    assert client.delete(f"/corpora/{file_id}").status_code == 204


@pytest.mark.parametrize(
    "damaged",
    DAMAGED,
    ids=range(len(DAMAGED)),
)
def test_a_damaged_evaluation_is_a_conflict_that_names_it(
    client: FlaskClient, world: World, run_id: str, damaged: str
) -> None:
    file = artifacts.evaluation_file(world.settings, run_id, "validation")
    file.parent.mkdir(parents=True)
    file.write_text(damaged.replace("RUN", run_id))
    response = client.get(f"/runs/{run_id}/eval")
    assert (response.status_code, response.get_json()["code"]) == (409, "MODEL_INCOMPATIBLE")
    assert f"{run_id}: the file of its validation evaluation" in response.get_json()["message"]


@pytest.mark.parametrize(
    ("split", "fraction"), [("validation", "holdout_fraction"), ("test", "test_split_ratio")]
)
def test_a_split_that_the_run_does_not_have_is_refused_with_the_reason(
    client: FlaskClient, world: World, split: str, fraction: str
) -> None:
    run_id = world.run(Status.COMPLETED, **{fraction: 0.0})
    world.model(run_id)
    response = evaluate(client, run_id, {"split": split})
    assert response.status_code == 422
    [detail] = response.get_json()["details"]
    assert detail["field"] == "split"
    assert f"no {split} split: its {fraction} is 0" in detail["message"]
    world.corpus("other.txt")
    asked: Body = {"split": split, "path_override": "other.txt"}
    assert evaluate(client, run_id, asked).status_code == 202


def test_another_text_is_pinned_by_its_digest(
    client: FlaskClient, world: World, run_id: str
) -> None:
    world.corpus("texts/t.txt", "Es war einmal")
    made = evaluate(client, run_id, {"path_override": "texts/t.txt"}).get_json()
    assert (made["split"], made["path_override"]) == ("validation", "texts/t.txt")
    assert EvaluateSpec.from_json(world.claim(made["request_id"]).spec) == EvaluateSpec(
        path_override="texts/t.txt", text_sha256=sha256(b"Es war einmal").hexdigest()
    )


@pytest.mark.parametrize(
    "path",
    [
        "none",
        "../x",
        "%2e%2e%2fx",
        "/etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
        "file:///etc/passwd",
        "texts",
        "link",
        "a\\b",
        "C:x",
        "\uff0e\uff0e/x",
        "x" * 1_000,
    ],
)
def test_a_text_to_evaluate_on_that_is_missing_or_forbidden_gets_one_answer(
    client: FlaskClient, world: World, run_id: str, path: str
) -> None:
    world.corpus("texts/t.txt")
    (world.settings.paths.corpus / "link").symlink_to("/etc/passwd")
    response = evaluate(client, run_id, {"path_override": path})
    assert (response.status_code, response.get_json()["code"]) == (404, "CORPUS_NOT_FOUND")
    expected = "path_override: there is no such file under the corpus root"
    assert response.get_json()["message"] == expected
    assert client.get(f"/runs/{run_id}/eval").status_code == 404


@pytest.mark.parametrize(("data", "code"), [(b"", "CORPUS_EMPTY"), (b"\xff", "CORPUS_NOT_TEXT")])
def test_a_text_to_evaluate_on_that_is_none_is_refused(
    client: FlaskClient, world: World, run_id: str, data: bytes, code: str
) -> None:
    world.corpus("t.txt")
    (world.settings.paths.corpus / "t.txt").write_bytes(data)
    response = evaluate(client, run_id, {"path_override": "t.txt"})
    assert (response.status_code, response.get_json()["code"]) == (422, code)


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.FAILED, Status.CANCELLED])
def test_a_run_that_failed_or_has_not_ended_is_not_evaluated(
    client: FlaskClient, world: World, status: Status
) -> None:
    run_id = world.run(status)
    response = evaluate(client, run_id, {})
    assert (response.status_code, response.get_json()["code"]) == (409, "NOT_READY")
    assert status in response.get_json()["message"]
    assert client.get(f"/runs/{run_id}/eval").get_json()["code"] == "EVAL_NOT_FOUND"


def test_an_unknown_run_has_no_evaluations(client: FlaskClient) -> None:
    for response in (evaluate(client, "run-none", {}), client.get("/runs/run-none/eval")):
        assert (response.status_code, response.get_json()["code"]) == (404, "RUN_NOT_FOUND")


def test_a_fifo_in_the_place_of_an_evaluation_is_damage_and_not_waited_for(
    client: FlaskClient, world: World
) -> None:
    run_id = world.run(Status.COMPLETED)
    world.model(run_id)
    file = artifacts.evaluation_file(world.settings, run_id, "validation")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    response = client.get(f"/runs/{run_id}/eval")
    assert (response.status_code, response.get_json()["code"]) == (409, "MODEL_INCOMPATIBLE")


def test_an_evaluation_that_may_not_be_read_is_not_taken_for_damaged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(artifacts, "open_regular", refused)
    with pytest.raises(PermissionError):
        artifacts.read_evaluation(world.settings, world.run(Status.COMPLETED), "validation")
