"""Whatever takes a path or a body, on each address that takes one: nothing bad gets anywhere."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient

from tests.api.conftest import ON_BOTH_DATABASES
from trainer_app.store.tables import Status

if TYPE_CHECKING:
    from tests.api.conftest import World

Body = dict[str, object]

SECRET = "what lies outside"
BODIES: dict[str, Body] = {
    "/runs/train": {"model_family": "char_lstm", "model_size": "tiny", "corpus_path": "tale.txt"},
    "/tokenizers/train": {"method": "char", "vocab_size": 100, "corpus_path": "tale.txt"},
    "/runs/{run}/evaluate": {},
    "/runs/{run}/score": {"text": "once"},
    "/runs/{run}/generate": {"prompt_text": "once"},
    "/runs/{run}/chat": {"message": "once"},
}
PATH_FIELDS = {
    "/runs/train": "corpus_path",
    "/tokenizers/train": "corpus_path",
    "/runs/{run}/evaluate": "path_override",
    "/runs/{run}/score": "path",
    "/runs/{run}/generate": "prompt_path",
}
BAD_PATHS = {
    "a parent": "../outside.txt",
    "a parent further in": "sub/../../outside.txt",
    "a percent-encoded parent": "%2e%2e%2foutside.txt",
    "a twice encoded parent": "%252e%252e%252foutside.txt",
    "fullwidth dots": "\uff0e\uff0e/outside.txt",
    "an overlong slash": "..\u2215outside.txt",
    "an absolute path": "/etc/passwd",
    "the environment": "/proc/self/environ",
    "endless zeros": "/dev/zero",
    "two slashes": "//etc/passwd",
    "an address": "file:///etc/passwd",
    "a backslash": "..\\outside.txt",
    "a drive": "C:\\outside.txt",
    "a Windows device": "CON",
    "a stream of NTFS": "tale.txt::$DATA",
    "a symbolic link out": "link.txt",
    "a symbolic link to zeros": "zero",
    "a symbolic link to the environment": "environ",
    "a folder that is a link": "linked/outside.txt",
    "a FIFO": "fifo",
    "a folder": "sub",
    "the root": ".",
    "a file as a folder": "tale.txt/x",
    "a trailing slash": "tale.txt/",
    "a home": "~/outside.txt",
    "a variable": "$HOME/outside.txt",
    "a newline": "tale.txt\n",
    "a name of 300 characters": "x" * 300,
    "a name of 5,000 characters": "x" * 5_000,
    "a folder of 5,000 characters": "x/" * 2_500 + "x",
}
IMPOSSIBLE_PATHS = {
    "empty": "",
    "NUL": "tale.txt\0.jpg",
    "half a surrogate": "\ud800",
    "10,000 characters": "x" * 10_000,
    "a number": 1,
    "a list": ["tale.txt"],
}
MALFORMED = {
    "not JSON": (b"{", 400),
    "empty": (b"", 400),
    "the same key twice": (b'{"a": 1, "a": 2}', 400),
    "100,000 levels": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
    "invalid UTF-8": (b'{"a": "\xc3\x28"}', 400),
    "an overlong encoding": (b'{"a": "\xc0\xaf"}', 400),
    "an array": (b"[]", 422),
    "null": (b"null", 422),
    "an unknown field": (b'{"surprise": 1}', 422),
    "a field of objects": (b'{"__proto__": {"x": 1}}', 422),
}


@pytest.fixture
def run_id(world: World) -> str:
    """A completed run with a model."""
    found = world.run(Status.COMPLETED)
    world.model(found)
    return found


@pytest.fixture
def trap(world: World) -> Path:
    """A corpus root with all that must not be opened in it."""
    root = world.settings.paths.corpus
    world.corpus()
    world.corpus("sub/tale.txt")
    (root.parent / "outside.txt").write_text(SECRET)
    (root / "link.txt").symlink_to(root.parent / "outside.txt")
    (root / "linked").symlink_to(root.parent)
    (root / "zero").symlink_to("/dev/zero")
    (root / "environ").symlink_to("/proc/self/environ")
    os.mkfifo(root / "fifo")
    return root


def rows(client: FlaskClient) -> list[object]:
    return [*client.get("/runs").get_json()["data"], *client.get("/tokenizers").get_json()["data"]]


@pytest.mark.parametrize("path", BAD_PATHS.values(), ids=BAD_PATHS)
@pytest.mark.parametrize("address", PATH_FIELDS)
def test_no_path_leads_out_and_each_gets_the_answer_of_a_missing_one(
    client: FlaskClient, trap: Path, run_id: str, address: str, path: str
) -> None:
    before = rows(client)
    field = PATH_FIELDS[address]
    kept = {"method", "vocab_size", "model_family", "model_size"}
    base = {name: value for name, value in BODIES[address].items() if name in kept}

    def asked_for(path: str) -> tuple[int, str, str]:
        answer = client.post(address.format(run=run_id), json={**base, field: path})
        assert SECRET not in answer.text
        assert os.environ["PATH"] not in answer.text
        return answer.status_code, answer.get_json()["code"], answer.get_json()["message"]

    missing = asked_for("missing.txt")
    assert missing[0] == 404
    assert asked_for(path) == missing
    assert rows(client) == before


@pytest.mark.parametrize("path", IMPOSSIBLE_PATHS.values(), ids=IMPOSSIBLE_PATHS)
@pytest.mark.parametrize("address", PATH_FIELDS)
def test_what_cannot_be_a_path_is_named(
    client: FlaskClient, world: World, run_id: str, address: str, path: object
) -> None:
    body = json.dumps({PATH_FIELDS[address]: path})
    answer = client.post(address.format(run=run_id), data=body, content_type="application/json")
    assert answer.status_code == 422
    assert PATH_FIELDS[address] in {d["field"] for d in answer.get_json()["details"]}


@pytest.mark.parametrize(("data", "status"), MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("address", BODIES)
def test_a_malformed_body_is_refused_at_every_address(
    client: FlaskClient, run_id: str, address: str, data: bytes, status: int
) -> None:
    answer = client.post(address.format(run=run_id), data=data, content_type="application/json")
    assert (answer.status_code, answer.get_json()["code"]) == (status, "INVALID_INPUT")


@pytest.mark.parametrize("address", BODIES)
def test_a_body_of_another_kind_is_refused_at_every_address(
    client: FlaskClient, world: World, run_id: str, address: str
) -> None:
    world.corpus()
    before = rows(client)
    text = json.dumps(BODIES[address])
    for content_type in (None, "", "text/plain", "application/x-www-form-urlencoded"):
        answer = client.post(address.format(run=run_id), data=text, content_type=content_type)
        assert answer.status_code == 415
    zipped = client.post(
        address.format(run=run_id),
        data=gzip.compress(text.encode()),
        content_type="application/json",
        headers={"Content-Encoding": "gzip"},
    )
    assert zipped.status_code == 415
    assert client.post(address.format(run=run_id)).status_code == 415
    assert rows(client) == before


@pytest.mark.parametrize("address", BODIES)
def test_100_megabytes_are_refused_unread_at_every_address(
    client: FlaskClient, run_id: str, address: str
) -> None:
    class Unreadable:
        def read(self, _size: int = -1) -> bytes:
            raise AssertionError("the body was read")

    answer = client.post(
        address.format(run=run_id),
        content_type="application/json",
        environ_overrides={
            "CONTENT_LENGTH": str(100 * 1024 * 1024),
            "wsgi.input": Unreadable(),
        },
    )
    assert answer.status_code == 413


@pytest.mark.parametrize("address", BODIES)
def test_two_lengths_are_refused_at_every_address(
    client: FlaskClient, run_id: str, address: str
) -> None:
    answer = client.post(
        address.format(run=run_id),
        data=json.dumps(BODIES[address]),
        content_type="application/json",
        headers={"Transfer-Encoding": "chunked"},
    )
    assert answer.status_code == 400


@ON_BOTH_DATABASES
@pytest.mark.parametrize("address", BODIES)
def test_markup_and_newlines_in_texts_come_back_as_data(
    client: FlaskClient, world: World, run_id: str, address: str
) -> None:
    world.corpus()
    nasty = "<script>alert(1)</script>\r\nX-Evil: 1\n\ndata: forged\u2028"
    fields = {"score": "text", "generate": "prompt_text", "chat": "message"}
    field = fields.get(address.rpartition("/")[2])
    change: Body = {field: nasty} if field else {"seed": 1}
    if address == "/runs/train":
        change = {"tags": [nasty], "sample_prompts": [nasty]}
    if address.endswith("evaluate"):
        change = {"split": nasty}
    answer = client.post(address.format(run=run_id), json={**BODIES[address], **change})
    assert answer.mimetype == "application/json"
    assert "X-Evil" not in answer.headers
    assert answer.status_code == (422 if address.endswith("evaluate") else 202)


def test_an_integer_that_no_database_holds_is_refused_in_every_query(client: FlaskClient) -> None:
    for number in ("9223372036854775808", "-9223372036854775809", "9" * 5_000, "1e3", "0x10"):
        for query in (f"/runs?user_id={number}", f"/runs?limit={number}"):
            assert client.get(query).status_code == 422


@pytest.mark.parametrize(
    "after", ["", "..", "a\0", "%00", "x" * 5_000, "' OR 1=1 --", "\u0661", "run-1/../2"]
)
@pytest.mark.parametrize("path", ["/runs", "/tokenizers", "/corpora"])
def test_a_cursor_that_nobody_was_given_is_refused(
    client: FlaskClient, path: str, after: str
) -> None:
    assert client.get(path, query_string={"after": after}).status_code == 422
