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


def test_a_range_of_a_file_is_downloaded(client: FlaskClient, run_id: str) -> None:
    response = client.get(f"/runs/{run_id}/artifact/weights", headers={"Range": "bytes=4-"})
    assert (response.status_code, response.data) == (206, b"456789")
    assert response.headers["Content-Range"] == "bytes 4-9/10"


def test_a_range_behind_the_end_is_refused(client: FlaskClient, run_id: str) -> None:
    response = client.get(f"/runs/{run_id}/artifact/weights", headers={"Range": "bytes=10-"})
    assert (response.status_code, response.get_json()["code"]) == (416, "INVALID_INPUT")
    assert response.headers["Content-Range"] == "bytes */10"


@pytest.mark.parametrize(
    ("given", "status", "part"),
    [
        ("bytes=0-0", 206, b"0"),
        ("BYTES=0-1", 206, b"01"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=-2", 206, b"89"),
        ("bytes=-11", 206, DATA),  # the last eleven of ten
        ("bytes=-99999999999999999999999", 206, DATA),
        ("bytes=99999999999999999999999-", 416, None),
        ("bytes=5-2", 200, DATA),  # what ends before it begins is no range
        ("bytes=12-11", 200, DATA),
        ("bytes=-0", 416, None),
        ("bytes=0-0,2-2", 200, DATA),
        ("bytes=" + ",".join(["0-"] * 1_000), 200, DATA),
        ("bytes=a-b", 200, DATA),
        ("bytes=", 200, DATA),
        ("bytes=-", 200, DATA),
        ("bytes=--5", 200, DATA),
        ("bytes=0x0-0x5", 200, DATA),
        ("bytes=1_0-2_0", 200, DATA),
        ("bytes=\u00b2-\u00b3", 200, DATA),
        ("bytes=" + "9" * 5_000 + "-", 200, DATA),
        ("lines=1-2", 200, DATA),
    ],
)
def test_a_range_means_what_http_says_or_is_ignored(
    client: FlaskClient, run_id: str, given: str, status: int, part: bytes | None
) -> None:
    response = client.get(f"/runs/{run_id}/artifact/weights", headers={"Range": given})
    assert response.status_code == status
    if part is not None:
        assert response.data == part
    else:
        assert response.headers["Content-Range"] == "bytes */10"


def test_a_file_that_is_not_the_one_that_the_client_means_is_not_sent(
    client: FlaskClient, run_id: str
) -> None:
    path = f"/runs/{run_id}/artifact/weights"
    etag = client.get(path).headers["ETag"]
    refused = client.get(path, headers={"If-Match": '"another"'})
    assert (refused.status_code, refused.get_json()["code"]) == (412, "INVALID_INPUT")
    for met in (etag, "*"):
        assert client.get(path, headers={"If-Match": met}).data == DATA
    resumed = {"Range": "bytes=5-", "If-Range": '"another"'}
    assert client.get(path, headers=resumed).data == DATA


@pytest.mark.parametrize("path", ["/docs", "/docs/swagger-ui.css", "/runs/{}/artifact/weights"])
@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 99999 23:59:59 GMT",
        "Fri, 31 Dec 0000 23:59:59 +9999",
        "9" * 5_000,
        "Fri, 99 Jan 99999999999 00:00:00 GMT",
        "Fri, 01 Jan 99999999999 00:00:00 GMT",
        "Fri, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Fri, 01 Jan 2020 99999999999999999999:00:00 GMT",
    ],
)
def test_a_date_that_is_none_is_ignored(
    client: FlaskClient, run_id: str, path: str, date: str
) -> None:
    plain = client.get(path.format(run_id))
    assert plain.status_code == 200
    for name in ("If-Modified-Since", "If-Unmodified-Since", "If-Range"):
        given = {name: date} | ({"Range": "bytes=0-1"} if name == "If-Range" else {})
        response = client.get(path.format(run_id), headers=given)
        assert (response.status_code, response.data) == (200, plain.data)


EARLIER = "Thu, 01 Jan 1970 00:00:07 GMT"
LATER = "Thu, 01 Jan 2099 00:00:00 GMT"


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"If-None-Match": "{etag}"}, 304),
        ({"If-None-Match": "W/{etag}"}, 304),
        ({"If-None-Match": '"another", {etag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"another"', "If-Modified-Since": LATER}, 200),
        ({"If-None-Match": "{etag}", "If-Modified-Since": EARLIER}, 304),
        ({"If-None-Match": "{etag}", "Range": "bytes=4-"}, 304),
        ({"If-None-Match": "{etag}", "Range": "bytes=99-"}, 304),
        ({"If-None-Match": '"another"', "Range": "bytes=4-"}, 206),
        ({"If-Modified-Since": "{date}"}, 304),
        ({"If-Modified-Since": LATER, "Range": "bytes=4-"}, 304),
        ({"If-Modified-Since": EARLIER}, 200),
        ({"If-Match": "{etag}", "If-None-Match": "{etag}"}, 304),
        ({"If-Match": '"another"', "If-None-Match": "{etag}"}, 412),
        ({"If-Match": "W/{etag}"}, 412),
        ({"If-Match": '"another"', "Range": "bytes=4-"}, 412),
        ({"If-Match": "{etag}", "Range": "bytes=4-"}, 206),
        ({"If-Unmodified-Since": EARLIER}, 412),
        ({"If-Unmodified-Since": EARLIER, "Range": "bytes=4-"}, 412),
        ({"If-Unmodified-Since": EARLIER, "If-None-Match": "{etag}"}, 412),
        ({"If-Unmodified-Since": EARLIER, "If-Match": "{etag}"}, 200),
        ({"If-Unmodified-Since": "{date}"}, 200),
        ({"If-Unmodified-Since": "yesterday"}, 200),
        ({"If-Range": "{etag}", "Range": "bytes=4-"}, 206),
        ({"If-Range": "{date}", "Range": "bytes=4-"}, 206),
        ({"If-Range": "W/{etag}", "Range": "bytes=4-"}, 200),
        ({"If-Range": LATER, "Range": "bytes=4-"}, 200),
        ({"If-Range": EARLIER, "Range": "bytes=4-"}, 200),
        ({"If-Range": "W/{etag}", "Range": "bytes=99-"}, 200),
        ({"If-Range": '"another"'}, 200),
    ],
)
def test_conditions_come_before_ranges_in_the_order_of_http(
    client: FlaskClient, run_id: str, given: dict[str, str], status: int
) -> None:
    path = f"/runs/{run_id}/artifact/weights"
    whole = client.get(path).headers
    known = {"etag": whole["ETag"], "date": whole["Last-Modified"]}
    headers = {name: value.format(**known) for name, value in given.items()}
    response = client.get(path, headers=headers)
    assert response.status_code == status
    if status < 400:
        assert response.data == {200: DATA, 206: DATA[4:], 304: b""}[status]


def test_who_wants_the_file_of_an_earlier_time_is_told_when_it_was_written(
    client: FlaskClient, run_id: str
) -> None:
    path = f"/runs/{run_id}/artifact/weights"
    written = client.get(path).headers["Last-Modified"]
    refused = client.get(path, headers={"If-Unmodified-Since": EARLIER})
    assert refused.get_json()["code"] == "INVALID_INPUT"
    assert refused.get_json()["message"] == (
        f"If-Unmodified-Since is before the file's time, {written}"
    )


def test_a_head_has_no_range(client: FlaskClient, run_id: str) -> None:
    response = client.head(f"/runs/{run_id}/artifact/weights", headers={"Range": "bytes=4-"})
    assert (response.status_code, response.headers["Content-Length"]) == (200, "10")


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
def test_a_run_without_a_model_has_nothing_to_download(
    client: FlaskClient, world: World, path: str
) -> None:
    response = client.get(f"/runs/{world.run()}/{path}")
    assert (response.status_code, response.get_json()["code"]) == (409, "NOT_READY")


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
