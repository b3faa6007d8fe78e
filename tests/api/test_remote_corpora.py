"""Corpora and models in the data bank, as clients of the API see them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient

from tests.databank_server import (
    Behaviour,
    DataBankServer,
    Request,
    hang_up,
    running_data_bank,
    sha256,
    silent,
    status,
    trickle_headers,
)
from trainer_app import artifacts
from trainer_app import settings as all_settings
from trainer_app.api.finished_model import damage_of
from trainer_app.core.stopping import never
from trainer_app.databank import corpus_cache
from trainer_app.databank.client import DataBank
from trainer_app.databank.retry import Patience
from trainer_app.settings import Settings
from trainer_app.store import lease, runs, tokenizers
from trainer_app.store.lease import Artifact
from trainer_app.store.tables import Status
from trainer_app.store.uploads import Archive

if TYPE_CHECKING:
    from tests.api.conftest import World

TEXT = b"Once upon a time.\n" * 100


@pytest.fixture
def server() -> Iterator[DataBankServer]:
    with running_data_bank() as running:
        yield running


@pytest.fixture
def remote(
    server: DataBankServer, settings: Settings, make_client: Callable[[Settings], FlaskClient]
) -> FlaskClient:
    """A client of an application that knows the data bank."""
    bank = all_settings.DataBank(url=server.url, api_key="k", max_bytes=10_000, retry_seconds=1.0)
    return make_client(replace(settings, data_bank=bank))


@pytest.fixture
def wanted(body: dict[str, object]) -> dict[str, object]:
    """A run on a corpus that was not uploaded here."""
    return {**body, "corpus_path": None, "corpus_file_id": "tale"}


def test_a_run_takes_a_corpus_of_the_data_bank_with_its_digest(
    remote: FlaskClient, server: DataBankServer, wanted: dict[str, object]
) -> None:
    server.put(TEXT, "tale")

    answer = remote.post("/runs/train", json=wanted, headers={"X-Request-ID": "req-9"})

    assert answer.status_code == 202, answer.text
    run = remote.get(answer.headers["Location"]).get_json()
    assert run["spec"]["corpus_sha256"] == sha256(TEXT)
    assert run["spec"]["corpus_file_id"] == "tale"
    (request,) = server.requests
    assert (request.command, request.headers["X-Request-ID"]) == ("HEAD", "req-9")


def test_a_tokenizer_takes_a_corpus_of_the_data_bank(
    remote: FlaskClient, server: DataBankServer, world: World
) -> None:
    server.put(TEXT, "tale")
    wanted = {"method": "char", "vocab_size": 100, "corpus_file_id": "tale", "tokenizer_id": "t"}

    answer = remote.post("/tokenizers/train", json=wanted)

    assert answer.status_code == 202, answer.text
    assert tokenizers.get(world.database, "t").spec.corpus_sha256 == sha256(TEXT)


def test_a_corpus_that_is_here_is_not_looked_for_elsewhere(
    remote: FlaskClient, server: DataBankServer, wanted: dict[str, object]
) -> None:
    file_id = remote.post("/corpora", data=TEXT, content_type="text/plain").get_json()["file_id"]

    answer = remote.post("/runs/train", json={**wanted, "corpus_file_id": file_id})

    assert answer.status_code == 202, answer.text
    assert server.requests == []


@pytest.mark.parametrize("file_id", ["nobody-has-it", "a" * 65])
def test_a_corpus_that_nobody_has_is_not_found(
    remote: FlaskClient, world: World, wanted: dict[str, object], file_id: str
) -> None:
    answer = remote.post("/runs/train", json={**wanted, "corpus_file_id": file_id})

    assert (answer.status_code, answer.get_json()["code"]) == (404, "CORPUS_NOT_FOUND")
    assert runs.list_(world.database).items == []


def test_without_a_data_bank_nothing_changes(
    client: FlaskClient, wanted: dict[str, object]
) -> None:
    answer = client.post("/runs/train", json=wanted)

    assert (answer.status_code, answer.get_json()["code"]) == (404, "CORPUS_NOT_FOUND")


def redirect_in_time(request: Request) -> None:
    time.sleep(1.5)
    request.reply(302, b"", {"Location": request.path})


@pytest.mark.parametrize(
    "answer",
    [
        status(500),
        status(403),
        status(302, Location="http://localhost:9/x"),
        hang_up,
        silent,
        trickle_headers,
        redirect_in_time,
        status(200),  # without an ETag
    ],
)
def test_a_data_bank_that_does_not_answer_as_it_should_is_left_to_the_worker_within_seconds(
    remote: FlaskClient, server: DataBankServer, wanted: dict[str, object], answer: Behaviour
) -> None:
    server.always("HEAD", answer)
    started = time.monotonic()

    accepted = remote.post("/runs/train", json=wanted)

    assert time.monotonic() - started < 5
    assert accepted.status_code == 202, accepted.text
    run = remote.get(accepted.headers["Location"]).get_json()
    assert (run["status"], run["spec"]["corpus_sha256"]) == ("queued", None)


def test_a_tokenizer_is_left_to_the_worker_too(
    remote: FlaskClient, server: DataBankServer, world: World
) -> None:
    server.always("HEAD", status(500))
    wanted = {"method": "char", "vocab_size": 100, "corpus_file_id": "tale", "tokenizer_id": "t"}

    answer = remote.post("/tokenizers/train", json=wanted)

    assert answer.status_code == 202, answer.text
    assert tokenizers.get(world.database, "t").spec.corpus_sha256 == ""


def test_the_data_bank_is_not_asked_for_a_corpus_that_was_fetched(
    remote: FlaskClient, server: DataBankServer, settings: Settings, wanted: dict[str, object]
) -> None:
    server.put(TEXT, "tale")
    fetch(settings, server)
    server.requests.clear()
    server.always("HEAD", status(500))

    answer = remote.post("/runs/train", json=wanted)

    assert answer.status_code == 202, answer.text
    run = remote.get(answer.headers["Location"]).get_json()
    assert run["spec"]["corpus_sha256"] == sha256(TEXT)
    assert server.requests == []


def test_the_data_bank_is_asked_for_a_fetched_corpus_that_somebody_edited(
    remote: FlaskClient, server: DataBankServer, settings: Settings, wanted: dict[str, object]
) -> None:
    server.put(TEXT, "tale")
    fetch(settings, server).write_bytes(b"of another size")
    server.requests.clear()

    answer = remote.post("/runs/train", json=wanted)

    assert answer.status_code == 202, answer.text
    assert [request.command for request in server.requests] == ["HEAD"]


def fetch(settings: Settings, server: DataBankServer) -> Path:
    """What a worker does before it reads the corpus."""
    bank = all_settings.DataBank(url=server.url, api_key="k", max_bytes=10_000, retry_seconds=1.0)
    with DataBank(bank) as client:
        return corpus_cache.fetch(
            client,
            settings.paths.corpus_cache,
            "tale",
            sha256=sha256(TEXT),
            max_bytes=10_000,
            patience=Patience(seconds=1.0),
            should_stop=never,
            on_message=lambda _: None,
        )


def test_a_corpus_that_is_too_large_is_refused_with_both_numbers(
    remote: FlaskClient, server: DataBankServer, wanted: dict[str, object]
) -> None:
    server.put(bytes(10_001), "tale")

    answer = remote.post("/runs/train", json=wanted)

    assert (answer.status_code, answer.get_json()["code"]) == (422, "INVALID_INPUT")
    (detail,) = answer.get_json()["details"]
    assert detail["field"] == "corpus_file_id"
    assert "10001" in detail["message"]
    assert "10000" in detail["message"]


def test_an_empty_corpus_is_refused(
    remote: FlaskClient, server: DataBankServer, wanted: dict[str, object]
) -> None:
    server.put(b"", "tale")

    answer = remote.post("/runs/train", json=wanted)

    assert (answer.status_code, answer.get_json()["code"]) == (422, "CORPUS_EMPTY")


def uploaded(world: World) -> str:
    """A completed run whose weights clean-up has deleted."""
    run_id = world.run(Status.QUEUED)
    folder = world.model(run_id, **{"model.safetensors": b"0123", "config.json": b"{}"})
    archive = Archive(file_id="file-1", sha256="0" * 64, bytes=10)
    published = sha256((folder / "manifest.json").read_bytes())
    lease.finish(
        world.database,
        world.claim(run_id),
        Status.COMPLETED,
        artifact=Artifact(storage="data-bank", sha256=published, archive=archive),
    )
    (folder / "model.safetensors").unlink()
    return run_id


def test_a_model_that_was_cleaned_up_since_its_row_was_read_is_not_called_damaged(
    client: FlaskClient, world: World
) -> None:
    here = runs.get(world.database, world.run(Status.COMPLETED))
    gone = runs.get(world.database, uploaded(world))
    with client.application.app_context():
        assert str(damage_of(here)).endswith("it is not what was published")
        assert damage_of(replace(gone, artifact_storage="local")) is None


def test_the_pointer_says_where_an_uploaded_model_is(client: FlaskClient, world: World) -> None:
    pointer = client.get(f"/runs/{uploaded(world)}/artifact").get_json()

    assert (pointer["storage"], pointer["file_id"]) == ("data-bank", "file-1")
    assert [file["name"] for file in pointer["files"]] == [
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("name", ["artifact/model.safetensors", "artifact.tar.gz"])
def test_weights_that_are_not_here_are_not_ready_and_the_answer_says_what_fetches_them(
    client: FlaskClient, world: World, name: str
) -> None:
    world.worker("trainer.inference")
    answer = client.get(f"/runs/{uploaded(world)}/{name}")

    assert (answer.status_code, answer.get_json()["code"]) == (409, "NOT_READY")
    message = answer.get_json()["message"]
    assert "its model.safetensors is in the data bank alone" in message
    assert "the file_id file-1" in message
    told = re.search(r"POST (\S+) with (\{.*\})", message)
    assert told is not None
    assert client.post(told[1], json=json.loads(told[2])).status_code == 202


def test_what_describes_such_a_model_can_still_be_read(client: FlaskClient, world: World) -> None:
    answer = client.get(f"/runs/{uploaded(world)}/artifact/config.json")

    assert (answer.status_code, answer.data) == (200, b"{}")


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_request_to_a_model_that_the_data_bank_has_is_taken_whatever_is_left_of_it_here(
    client: FlaskClient, world: World, name: str
) -> None:
    run_id = uploaded(world)
    (artifacts.model_directory(world.settings, run_id) / name).unlink()
    answer = client.post(f"/runs/{run_id}/generate", json={"prompt_text": "a"})
    assert answer.status_code == 202
