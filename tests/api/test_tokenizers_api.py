"""Starting, listing and reading tokenizers."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import redis
from flask.testing import FlaskClient
from jsonschema_rs import Draft202012Validator
from werkzeug.test import TestResponse

from backends.registry import TOKENIZER_KINDS, TOKENIZER_MIN_VOCAB
from tests.api.conftest import ON_BOTH_DATABASES
from trainer_app.artifacts import tokenizer_directory
from trainer_app.store import tokenizers
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.api.conftest import World
    from trainer_app.settings import Settings

Body = dict[str, object]


@pytest.fixture
def asked(world: World) -> Body:
    """A body that is accepted."""
    return {"method": "bpe", "vocab_size": 300, "corpus_path": world.corpus()}


def train(client: FlaskClient, body: Body, **headers: str) -> TestResponse:
    return client.post("/tokenizers/train", json=body, headers=list(headers.items()))


def test_a_tokenizer_is_accepted_and_queued(client: FlaskClient, world: World, asked: Body) -> None:
    response = train(client, asked)
    assert response.status_code == 202
    made = response.get_json()
    tokenizer_id = made["tokenizer_id"]
    assert made == {
        "tokenizer_id": tokenizer_id,
        "artifact_path": str(tokenizer_directory(world.settings, tokenizer_id)),
        "coverage": None,
        "oov_rate": None,
    }
    assert response.headers["Location"] == f"/tokenizers/{tokenizer_id}"
    assert client.get(response.headers["Location"]).get_json()["status"] == "queued"
    with redis.Redis.from_url(world.settings.redis.url) as broker:
        assert list(broker.scan_iter("trainer.light*"))


def test_the_defaults_are_those_of_the_contract(
    client: FlaskClient, world: World, asked: Body
) -> None:
    tokenizer_id = train(client, asked).get_json()["tokenizer_id"]
    spec = tokenizers.get(world.database, tokenizer_id).spec
    assert (spec.min_frequency, spec.holdout_fraction, spec.seed) == (2, 0.01, 42)
    assert len(spec.corpus_sha256) == 64


@pytest.mark.parametrize("method", TOKENIZER_KINDS)
def test_every_kind_can_be_asked_for_from_its_smallest_size_on(
    client: FlaskClient, asked: Body, method: str
) -> None:
    least = TOKENIZER_MIN_VOCAB[method]
    assert train(client, asked | {"method": method, "vocab_size": least}).status_code == 202
    response = train(client, asked | {"method": method, "vocab_size": least - 1})
    assert response.status_code == 422
    assert response.get_json()["details"][0]["field"] == "vocab_size"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"method": "words"}, "method"),
        ({"method": None}, "method"),
        ({"vocab_size": 1_000_001}, "vocab_size"),
        ({"vocab_size": "300"}, "vocab_size"),
        ({"min_frequency": 0}, "min_frequency"),
        ({"holdout_fraction": 0.6}, "holdout_fraction"),
        ({"corpus_path": None}, "corpus_file_id"),
        ({"corpus_file_id": "0" * 64}, "corpus_file_id"),
        ({"tokenizer_id": "../x"}, "tokenizer_id"),
        ({"tokenizer_id": "a..b"}, "tokenizer_id"),
        ({"tokenizer_id": "a/b"}, "tokenizer_id"),
        ({"tokenizer_id": ""}, "tokenizer_id"),
        ({"tokenizer_id": "x" * 65}, "tokenizer_id"),
        ({"tokenizer_id": "CON\n"}, "tokenizer_id"),
        ({"tokenizer_id": "CON"}, "tokenizer_id"),
        ({"tokenizer_id": "aux.x"}, "tokenizer_id"),
        ({"tokenizer_id": "x."}, "tokenizer_id"),
        ({"tokenizer_id": "train"}, "tokenizer_id"),
        ({"": 5}, "''"),
        ({"vocabsize": 5}, "vocabsize"),
    ],
)
def test_a_bad_field_is_named(client: FlaskClient, asked: Body, change: Body, field: str) -> None:
    response = train(client, asked | change)
    assert response.status_code == 422
    assert response.get_json()["details"][0]["field"] == field
    assert client.get("/tokenizers").get_json()["data"] == []


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("x", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ("a b", False),
        (".a", False),
        ("a.b-c_d", True),
        ("a..b", False),
        ("a.", False),
        ("a.\n", False),
        ("train", False),
        ("train.", False),
        ("Train", True),
        ("train2", True),
        ("con", False),
        ("CoN.txt", False),
        ("aux.", False),
        ("icon", True),
        ("con-1", True),
        ("com0", False),
        ("LPT9.a.b", False),
        ("com10", True),
        ("com", True),
    ],
)
def test_the_document_allows_the_names_that_the_server_takes_and_no_other(
    client: FlaskClient, asked: Body, name: str, *, taken: bool
) -> None:
    document = client.get("/openapi.json").get_json()
    properties = document["components"]["schemas"]["TokenizerTrain"]["properties"]
    assert Draft202012Validator(properties["tokenizer_id"]).is_valid(name) is taken
    assert train(client, asked | {"tokenizer_id": name}).status_code == (202 if taken else 422)


def test_method_and_size_must_be_given(client: FlaskClient) -> None:
    details = train(client, {}).get_json()["details"]
    assert {detail["field"] for detail in details} == {"method", "vocab_size"}
    assert {detail["message"] for detail in details} == {"is needed"}


def test_a_bad_name_is_told_the_lengths_that_a_name_may_have(
    client: FlaskClient, asked: Body
) -> None:
    (detail,) = train(client, asked | {"tokenizer_id": "a/b"}).get_json()["details"]
    assert detail["message"].startswith("'a/b': must match [A-Za-z0-9][A-Za-z0-9._-]{0,63}, ")


@pytest.mark.parametrize("change", [{"corpus_path": "none"}, {"corpus_path": "../x"}])
def test_an_unknown_corpus_is_not_found(client: FlaskClient, asked: Body, change: Body) -> None:
    response = train(client, asked | change)
    assert (response.status_code, response.get_json()["code"]) == (404, "CORPUS_NOT_FOUND")


@ON_BOTH_DATABASES
def test_a_name_is_taken_once(client: FlaskClient, asked: Body) -> None:
    named = asked | {"tokenizer_id": "english-8k"}
    assert train(client, named).get_json()["tokenizer_id"] == "english-8k"
    response = train(client, named)
    assert (response.status_code, response.get_json()["code"]) == (409, "CONFLICT")


@ON_BOTH_DATABASES
def test_of_32_that_want_one_name_at_once_one_gets_it(client: FlaskClient, asked: Body) -> None:
    app = client.application
    statuses: list[int] = []

    def post() -> None:
        statuses.append(train(app.test_client(), asked | {"tokenizer_id": "one"}).status_code)

    threads = [threading.Thread(target=post) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == [202] + [409] * 31


@ON_BOTH_DATABASES
def test_a_name_whose_tokenizer_failed_is_free(
    client: FlaskClient, world: World, asked: Body
) -> None:
    world.tokenizer("broken", status=Status.FAILED)
    assert train(client, asked | {"tokenizer_id": "broken"}).status_code == 202


@ON_BOTH_DATABASES
def test_a_repeat_with_the_same_key_gets_the_first_answer(client: FlaskClient, asked: Body) -> None:
    first, again = (train(client, asked, **{"Idempotency-Key": "k"}) for _ in range(2))
    assert (again.status_code, again.get_json()) == (202, first.get_json())
    assert len(client.get("/tokenizers").get_json()["data"]) == 1


def test_nothing_is_written_while_redis_is_away(
    world: World, make_client: Callable[[Settings], FlaskClient], asked: Body
) -> None:
    away = replace(world.settings.redis, url="redis://127.0.0.1:1/0")
    response = train(make_client(replace(world.settings, redis=away)), asked)
    assert response.status_code == 503
    assert tokenizers.list_(world.database).items == []


@ON_BOTH_DATABASES
def test_a_finished_tokenizer_shows_what_was_measured(client: FlaskClient, world: World) -> None:
    world.tokenizer("words")
    found = client.get("/tokenizers/words").get_json()
    assert found == {
        "tokenizer_id": "words",
        "artifact_path": str(tokenizer_directory(world.settings, "words")),
        "status": "completed",
        "method": "bpe",
        "vocab_size": 300,
        "coverage": None,
        "oov_rate": 0.5,
        "token_count": None,
        "char_coverage": None,
        "bytes_per_token": None,
        "error": None,
    }


def test_a_failed_tokenizer_says_why(client: FlaskClient, world: World) -> None:
    world.tokenizer("broken", status=Status.FAILED)
    assert client.get("/tokenizers/broken").get_json()["error"] == "TIMED_OUT: over"


@ON_BOTH_DATABASES
def test_tokenizers_are_listed_newest_first_in_pages(client: FlaskClient, world: World) -> None:
    for name in ("a", "b", "c"):
        world.tokenizer(name)
    first = client.get("/tokenizers?limit=2").get_json()
    assert [item["tokenizer_id"] for item in first["data"]] == ["c", "b"]
    second = client.get(f"/tokenizers?after={first['next']}").get_json()
    assert [item["tokenizer_id"] for item in second["data"]] == ["a"]


def test_an_unknown_tokenizer_is_not_found(client: FlaskClient) -> None:
    response = client.get("/tokenizers/none")
    assert (response.status_code, response.get_json()["code"]) == (404, "TOKENIZER_NOT_FOUND")
