"""Downloading finished models."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient

from trainer_app import artifacts
from trainer_app.store import lease
from trainer_app.store.endings import Artifact
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import World

DATA = b"0123456789"


@pytest.fixture
def run_id(world: World) -> str:
    """A completed run with a model of one file beside its manifest."""
    run_id = world.run(Status.COMPLETED)
    world.model(run_id)
    return run_id


def test_the_pointer_lists_every_file_with_its_digest(client: FlaskClient, run_id: str) -> None:
    pointer = client.get(f"/runs/{run_id}/artifact").get_json()
    assert (pointer["storage"], pointer["file_id"]) == ("local", None)
    listed = {file["name"]: file for file in pointer["files"]}
    assert set(listed) == {"manifest.json", "weights"}
    assert listed["weights"]["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert pointer["sha256"] == listed["manifest.json"]["sha256"]


def test_a_file_is_downloaded(client: FlaskClient, run_id: str) -> None:
    response = client.get(f"/runs/{run_id}/artifact/weights")
    assert response.data == DATA
    assert response.headers["Content-Length"] == "10"
    assert response.headers["ETag"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
    assert "attachment" in response.headers["Content-Disposition"]


def test_a_file_of_a_folder_is_downloaded(client: FlaskClient, world: World) -> None:
    run_id = world.run(Status.COMPLETED)
    staging = world.settings.paths.runs / run_id / "staging"
    (staging / "eval").mkdir(parents=True)
    (staging / "eval" / "metrics.json").write_bytes(b"{}")
    world.publish(run_id, staging)
    assert client.get(f"/runs/{run_id}/artifact/eval/metrics.json").data == b"{}"


@pytest.mark.parametrize(
    "name",
    [
        "none",
        "../manifest.json",
        "%2e%2e/%2e%2e/trainer.db",
        "weights/",
        "./weights",
        "%00",
        "a%0ab",
        "/etc/passwd",
        "WEIGHTS",
    ],
)
def test_a_file_that_is_not_listed_is_not_there(
    client: FlaskClient, run_id: str, name: str
) -> None:
    response = client.get(f"/runs/{run_id}/artifact/{name}")
    assert response.status_code == 404
    assert response.get_json()["code"] in {"DATA_NOT_FOUND", "NOT_FOUND"}


def test_all_files_come_as_one_archive(client: FlaskClient, run_id: str) -> None:
    response = client.get(f"/runs/{run_id}/artifact.tar.gz")
    assert response.mimetype == "application/gzip"
    assert f"{run_id}.tar.gz" in response.headers["Content-Disposition"]
    with tarfile.open(fileobj=io.BytesIO(response.data), mode="r:gz") as archive:
        assert sorted(archive.getnames()) == [f"{run_id}/manifest.json", f"{run_id}/weights"]
        weights = archive.extractfile(f"{run_id}/weights")
        assert weights is not None
        assert weights.read() == DATA


@pytest.mark.parametrize("path", ["artifact", "artifact/weights", "artifact.tar.gz"])
@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.FAILED, Status.CANCELLED])
def test_a_run_without_a_model_has_nothing_to_download_and_says_why(
    client: FlaskClient, world: World, status: Status, path: str
) -> None:
    run_id = world.run(status)
    response = client.get(f"/runs/{run_id}/{path}")
    assert (response.status_code, response.get_json()["code"]) == (409, "NOT_READY")
    assert response.get_json()["message"] == f"{run_id} is {status}: it has no finished model"


def list_also(folder: Path, name: str) -> None:
    """Write one more file into a model's manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_no_manifest_leads_out_of_the_folder_of_its_model(
    client: FlaskClient, world: World
) -> None:
    run_id = world.run(Status.COMPLETED)
    folder = world.model(run_id)
    (world.settings.paths.data_root / "trainer.db").write_bytes(b"not yours")
    list_also(folder, "../../../trainer.db")
    for path in ("artifact/..%2f..%2f..%2ftrainer.db", "artifact.tar.gz", "artifact"):
        response = client.get(f"/runs/{run_id}/{path}")
        assert (response.status_code, response.get_json()["code"]) == (409, "MODEL_INCOMPATIBLE")


@pytest.mark.parametrize("path", ["artifact/x.txt", "artifact.tar.gz"])
def test_no_link_is_followed_out_of_the_folder_of_a_model(
    client: FlaskClient, world: World, path: str
) -> None:
    run_id = world.run(Status.COMPLETED)
    folder = world.model(run_id)
    secret = world.settings.paths.data_root / "secret"
    secret.write_bytes(b"s")
    (folder / "x.txt").symlink_to(secret)
    list_also(folder, "x.txt")
    response = client.get(f"/runs/{run_id}/{path}")
    assert (response.status_code, response.get_json()["code"]) == (409, "MODEL_INCOMPATIBLE")


ASKED = [
    ("GET", "artifact.tar.gz", None),
    ("GET", "artifact/weights", None),
    ("POST", "generate", {"prompt_text": "a"}),
    ("POST", "score", {"text": "a"}),
    ("POST", "evaluate", {}),
    ("POST", "chat", {"message": "a"}),
]


@pytest.mark.parametrize(("method", "path", "body"), [("GET", "artifact", None), *ASKED])
def test_a_damaged_manifest_is_a_conflict_that_names_it(
    client: FlaskClient, world: World, method: str, path: str, body: object
) -> None:
    run_id = world.run(Status.COMPLETED)
    manifest = world.model(run_id) / "manifest.json"
    for damaged in (b"{", b"[]", b'{"files":[]}', b'{"files":{"config.json":{}}}', b"[" * 100_000):
        manifest.write_bytes(damaged)
        response = client.open(f"/runs/{run_id}/{path}", method=method, json=body)
        assert (response.status_code, response.get_json()["code"]) == (409, "MODEL_INCOMPATIBLE")
        assert f"{run_id}: its manifest.json" in response.get_json()["message"]


@pytest.mark.parametrize(("method", "path", "body"), [("GET", "artifact", None), *ASKED])
def test_a_folder_that_was_changed_and_sealed_anew_is_not_taken_for_what_was_published(
    client: FlaskClient, world: World, method: str, path: str, body: object
) -> None:
    run_id = world.run(Status.QUEUED)
    folder = world.model(run_id)
    sealed = artifacts.pointer(folder).sha256
    lease.finish(
        world.database,
        world.claim(run_id),
        Status.COMPLETED,
        artifact=Artifact(storage="local", sha256=sealed),
    )
    assert client.open(f"/runs/{run_id}/{path}", method=method, json=body).status_code < 300

    (folder / "weights").write_bytes(b"others")
    (folder / "manifest.json").unlink()
    changed = folder.with_name("changed")
    folder.rename(changed)
    artifacts.publish(changed, folder, {"run_id": run_id})

    response = client.open(f"/runs/{run_id}/{path}", method=method, json=body)
    assert (response.status_code, response.get_json()["code"]) == (409, "MODEL_INCOMPATIBLE")
    assert f"{run_id}: its manifest.json" in response.get_json()["message"]


@pytest.mark.parametrize(("method", "path", "body"), ASKED)
@pytest.mark.parametrize("left", [DATA[:4], DATA + b" ", None], ids=["short", "long", "gone"])
def test_a_model_that_lost_bytes_is_not_said_to_be_whole_or_elsewhere_or_yet_to_come(
    client: FlaskClient, world: World, method: str, path: str, body: object, left: bytes | None
) -> None:
    run_id = world.run(Status.COMPLETED)
    weights = world.model(run_id) / "weights"
    weights.unlink()
    if left is not None:
        weights.write_bytes(left)
    response = client.open(f"/runs/{run_id}/{path}", method=method, json=body)
    assert (response.status_code, response.get_json()["code"]) == (409, "MODEL_INCOMPATIBLE")
    assert f"{run_id}: its weights is damaged or gone" in response.get_json()["message"]


@pytest.mark.parametrize(("method", "path", "body"), [("GET", "artifact", None), *ASKED])
def test_a_completed_run_whose_manifest_is_gone_gets_none_any_more(
    client: FlaskClient, world: World, method: str, path: str, body: object
) -> None:
    run_id = world.run(Status.COMPLETED)
    (world.model(run_id) / "manifest.json").unlink()
    response = client.open(f"/runs/{run_id}/{path}", method=method, json=body)
    assert (response.status_code, response.get_json()["code"]) == (409, "MODEL_INCOMPATIBLE")
    assert f"{run_id}: its manifest.json is damaged" in response.get_json()["message"]


@pytest.mark.parametrize(("method", "path", "body"), [("GET", "artifact", None), *ASKED])
def test_a_link_in_the_place_of_a_models_folder_is_not_followed(
    client: FlaskClient, world: World, run_id: str, method: str, path: str, body: object
) -> None:
    folder = artifacts.model_directory(world.settings, run_id)
    elsewhere = world.settings.paths.data_root / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    response = client.open(f"/runs/{run_id}/{path}", method=method, json=body)
    assert (response.status_code, response.get_json()["code"]) == (409, "MODEL_INCOMPATIBLE")


@pytest.mark.parametrize("linked", ["artifacts", "artifacts/models"])
def test_the_folders_above_that_of_a_model_may_be_links(
    client: FlaskClient, world: World, run_id: str, linked: str
) -> None:
    folder = world.settings.paths.data_root / linked
    elsewhere = world.settings.paths.data_root / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    for path in ("artifact", "artifact.tar.gz", "artifact/weights"):
        assert client.get(f"/runs/{run_id}/{path}").status_code == 200


@contextmanager
def no_file_left() -> Iterator[None]:
    """This process can open no file more than it has."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_server_with_no_file_left_to_open_is_unavailable(
    client: FlaskClient, world: World, run_id: str
) -> None:
    world.worker("trainer.inference")
    prompt = {"prompt_path": world.corpus()}
    paths = [f"/runs/{run_id}/artifact{more}" for more in ("", ".tar.gz", "/weights")]
    asked: list[tuple[str, str, dict[str, str] | None]] = [("GET", path, None) for path in paths]
    asked.append(("POST", f"/runs/{run_id}/generate", prompt))
    for method, path, body in asked:  # opens what a server has open
        assert client.open(path, method=method, json=body).status_code in {200, 202}
    for method, path, body in asked:
        with no_file_left():
            response = client.open(path, method=method, json=body)
        assert (response.status_code, response.get_json()["code"]) == (503, "UNAVAILABLE")
        assert response.get_json()["message"] == "the server has too many files open"
