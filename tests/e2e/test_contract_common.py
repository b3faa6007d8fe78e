"""Section 1 of the contract: what holds at every address. Against a server with keys."""

from __future__ import annotations

import json
import re
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.stranger import Json, Stranger, code, refused_fields
from trainer_app.stack.launch import RunningStack, running_stack

pytestmark = pytest.mark.slow

KEYS = ("first-key-of-this-test", "zweiter-schlüssel")
OPEN = ["/healthz", "/readyz", "/docs", "/openapi.json"]
DOORS = [
    ("GET", "/runs"),
    ("POST", "/runs/train"),
    ("GET", "/runs/x"),
    ("POST", "/runs/x/evaluate"),
    ("GET", "/runs/x/eval"),
    ("GET", "/runs/x/artifact"),
    ("GET", "/runs/x/artifact/config.json"),
    ("GET", "/runs/x/artifact.tar.gz"),
    ("GET", "/runs/x/logs"),
    ("GET", "/runs/x/logs/stream"),
    ("GET", "/runs/x/metrics"),
    ("GET", "/runs/x/metrics/stream"),
    ("POST", "/runs/x/cancel"),
    ("POST", "/runs/x/score"),
    ("GET", "/runs/x/score/y"),
    ("POST", "/runs/x/generate"),
    ("GET", "/runs/x/generate/y"),
    ("POST", "/runs/x/chat"),
    ("GET", "/runs/x/chat/y"),
    ("GET", "/runs/x/chat/y/z"),
    ("DELETE", "/runs/x/chat/y"),
    ("POST", "/tokenizers/train"),
    ("GET", "/tokenizers"),
    ("GET", "/tokenizers/x"),
    ("POST", "/corpora"),
    ("GET", "/corpora"),
    ("GET", "/corpora/x"),
    ("DELETE", "/corpora/x"),
    ("GET", "/nowhere"),
]


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack that asks for a key."""
    environment = {
        "APP__THREADS": "1",
        "SECURITY__API_KEY": ",".join(KEYS),
        "LOGGING__FORMAT": "json",
        "LOGGING__LEVEL": "DEBUG",
    }
    with running_stack(tmp_path_factory.mktemp("locked"), environment=environment) as stack:
        yield stack


@pytest.fixture(scope="module")
def stranger(locked: RunningStack) -> Iterator[Stranger]:
    with Stranger(locked.api_url, **{"X-Api-Key": KEYS[0]}) as stranger:
        yield stranger


@pytest.fixture(scope="module")
def keyless(locked: RunningStack) -> Iterator[Stranger]:
    with Stranger(locked.api_url) as stranger:
        yield stranger


@pytest.fixture(scope="module")
def corpus(stranger: Stranger, text: Path) -> str:
    file_id: str = stranger.upload(text.read_bytes()[:50_000]).json()["file_id"]
    return file_id


@pytest.fixture(scope="module")
def model(stranger: Stranger, corpus: str) -> str:
    """A finished model whose POST had an id of its own."""
    body = {**quick(corpus), "tags": ["with\nnewline"]}
    answer = stranger.post("/runs/train", body, X_Request_ID="model-of-this-test")
    done = stranger.wait(answer.headers["Location"])
    assert done["status"] == "completed", done
    run_id: str = answer.json()["run_id"]
    return run_id


def quick(corpus: str) -> Json:
    return {
        "model_family": "char_lstm",
        "model_size": "tiny",
        "corpus_file_id": corpus,
        "max_steps": 2,
        "max_seq_len": 8,
    }


def server_log(locked: RunningStack, *, of_request: str) -> str:
    """All that the stack has logged, once the request of this id is there: logs lag the answers."""
    logged = ""
    deadline = time.monotonic() + 10.0
    while of_request not in logged and time.monotonic() < deadline:
        time.sleep(0.02)
        logged = "".join(
            path.read_text("utf-8", "replace")
            for folder in (locked.data_root / "run" / "logs", locked.data_root / "logs")
            for path in folder.iterdir()
        )
    assert of_request in logged
    return logged


# Keys


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_every_door_asks_for_a_key(keyless: Stranger, method: str, path: str) -> None:
    assert code(keyless.send(method, path)) == (401, "UNAUTHORIZED")
    wrong = keyless.send(method, path, headers={"X-Api-Key": "wrong"})
    assert code(wrong) == (403, "FORBIDDEN")


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_documents_are_open(keyless: Stranger, path: str) -> None:
    assert keyless.get(path).status_code == 200


@pytest.mark.parametrize("key", KEYS)
def test_each_of_several_keys_opens(locked: RunningStack, key: str) -> None:
    with Stranger(locked.api_url) as stranger:
        answer = stranger.http.get("/runs", headers=[(b"X-Api-Key", key.encode())])
        assert answer.status_code == 200


def test_a_key_of_7_kilobytes_is_wrong_like_any_other(keyless: Stranger) -> None:
    for path in ("/runs", "/runs/x/logs/stream"):
        assert code(keyless.get(path, X_Api_Key="k" * 7_000)) == (403, "FORBIDDEN")


def test_no_key_right_or_wrong_is_in_a_log(
    locked: RunningStack, stranger: Stranger, keyless: Stranger, model: str
) -> None:
    keyless.get("/runs", X_Api_Key="wrong-key-of-this-test")
    keyless.get("/runs?api_key=key-in-a-url", X_Request_ID="last-try-without-a-key")
    logged = server_log(locked, of_request="last-try-without-a-key")
    assert model in logged
    for key in (*KEYS, "wrong-key-of-this-test", "key-in-a-url"):
        assert key not in logged


def test_a_wrong_key_takes_no_longer_the_more_of_it_is_right(keyless: Stranger) -> None:
    def fastest(key: str) -> float:
        times = []
        for _ in range(30):
            began = time.perf_counter()
            keyless.get("/runs", X_Api_Key=key)
            times.append(time.perf_counter() - began)
        return min(times)

    # Far coarser than an attacker's means: that the digests compare in constant time is hmac's.
    assert abs(fastest("x" * len(KEYS[0])) - fastest(KEYS[0][:-1] + "x")) < 0.01


# Request ids


@pytest.mark.parametrize("given", ["a", "A.b_c-9", "x" * 64])
def test_a_request_id_of_the_right_form_is_echoed(stranger: Stranger, given: str) -> None:
    assert stranger.get("/runs", X_Request_ID=given).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a/b", "<b>", "a;b"])
def test_any_other_request_id_is_replaced(stranger: Stranger, given: str) -> None:
    made = stranger.get("/runs", X_Request_ID=given).headers["X-Request-ID"]
    assert uuid.UUID(made).version == 4


def test_a_request_id_is_in_the_error_the_log_and_the_log_of_the_task(
    locked: RunningStack, stranger: Stranger, model: str
) -> None:
    answer = stranger.get("/runs/unknown", X_Request_ID="find-me-in-the-log")
    assert answer.json()["request_id"] == "find-me-in-the-log"
    logged = server_log(locked, of_request="find-me-in-the-log")
    assert '"request_id": "find-me-in-the-log"' in logged.replace('":"', '": "')

    lines = stranger.get(f"/runs/{model}/logs?tail=10000").text.splitlines()

    assert {json.loads(line).get("request_id") for line in lines} == {"model-of-this-test"}


# Bodies and errors


def test_a_body_that_is_no_json_is_a_bad_request(stranger: Stranger) -> None:
    for content in (b"{", b"", b'{"a": 1, "a": 2}', b"\xff", b"[" * 100_000):
        answer = stranger.send(
            "POST",
            "/runs/train",
            content=content,
            headers={"Content-Type": "application/json"},
        )
        assert code(answer) == (400, "INVALID_INPUT")


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/xml"])
def test_a_body_of_another_type_is_refused(stranger: Stranger, content_type: str) -> None:
    answer = stranger.send(
        "POST", "/runs/train", content=b"{}", headers={"Content-Type": content_type}
    )
    assert code(answer) == (415, "INVALID_INPUT")


def test_a_compressed_body_is_refused(stranger: Stranger) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = stranger.send("POST", "/runs/train", content=b"\x1f\x8b", headers=headers)
    assert code(answer) == (415, "INVALID_INPUT")


@pytest.mark.parametrize("path", ["/runs/train", "/tokenizers/train", "/runs/x/generate"])
def test_100_megabytes_are_refused_unread(locked: RunningStack, path: str) -> None:
    address = urlsplit(locked.api_url)
    assert address.hostname
    assert address.port
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nX-Api-Key: {KEYS[0]}\r\n"
            "Content-Type: application/json\r\nContent-Length: 104857600\r\n\r\n{"
        )
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(1_000).split(b"\r\n")[0]


@pytest.mark.parametrize("content", [b"[]", b"null", b'"text"', b"1", b"true"])
def test_a_body_that_is_no_object_is_refused(stranger: Stranger, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = stranger.send("POST", "/runs/train", content=content, headers=headers)
    assert code(answer) == (422, "INVALID_INPUT")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/runs", {"GET"}),
        ("PUT", "/runs/train", {"POST"}),
        ("PATCH", "/corpora", {"GET", "POST"}),
        ("POST", "/healthz", {"GET"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    stranger: Stranger, method: str, path: str, allowed: set[str]
) -> None:
    answer = stranger.send(method, path)
    assert code(answer) == (405, "METHOD_NOT_ALLOWED")
    assert set(re.split(", *", answer.headers["Allow"])) >= allowed


def test_an_unknown_address_is_not_found(stranger: Stranger) -> None:
    assert code(stranger.get("/nowhere")) == (404, "NOT_FOUND")


def test_a_foreign_host_or_origin_is_refused(stranger: Stranger) -> None:
    for header in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        answer = stranger.send("GET", "/runs", headers=header)
        assert code(answer) == (403, "FORBIDDEN")


# Idempotency


def test_every_post_that_starts_work_is_repeated_safely(
    stranger: Stranger, corpus: str, model: str
) -> None:
    tokens = {"method": "char", "vocab_size": 200, "corpus_file_id": corpus}
    posts: list[tuple[str, Json, Json]] = [
        ("/runs/train", quick(corpus), {"seed": 1}),
        ("/tokenizers/train", tokens, {"seed": 1}),
        (f"/runs/{model}/generate", {"prompt_text": "a", "max_new_tokens": 1}, {"seed": 1}),
        (f"/runs/{model}/score", {"text": "abc"}, {"text": "abcd"}),
        (f"/runs/{model}/evaluate", {}, {"split": "test"}),
        (f"/runs/{model}/chat", {"message": "a", "max_new_tokens": 1}, {"seed": 1}),
    ]
    names = ("run_id", "tokenizer_id", "request_id", "session_id")
    for path, body, change in posts:
        key = uuid.uuid4().hex
        first, again = (stranger.post(path, body, Idempotency_Key=key) for _ in range(2))
        assert (first.status_code, again.status_code) == (202, 202), first.text
        assert [first.json().get(name) for name in names] == [
            again.json().get(name) for name in names
        ]
        assert first.headers["Location"] == again.headers["Location"]
        other = stranger.post(path, {**body, **change}, Idempotency_Key=key)
        assert refused_fields(other) == {"Idempotency-Key"}, path
        assert stranger.post(path, body, Idempotency_Key=uuid.uuid4().hex).status_code == 202


def test_moves_of_a_run_are_repeated_safely(stranger: Stranger, corpus: str) -> None:
    body = {**quick(corpus), "num_epochs": 1_000, "max_steps": 0, "early_stopping_patience": 0}
    run = f"/runs/{stranger.post('/runs/train', body).json()['run_id']}"
    for move, status in (("pause", 200), ("resume", 202), ("cancel", 200)):
        key = {"Idempotency-Key": uuid.uuid4().hex}
        first, again = (stranger.send("POST", f"{run}/{move}", headers=key) for _ in range(2))
        assert (first.status_code, again.status_code) == (status, status), first.text
        assert first.json() == again.json()
        other = stranger.send("POST", f"{run}/{move}", {"force": True}, headers=key)
        assert code(other) == (422, "INVALID_INPUT")
    assert stranger.wait(run)["status"] == "cancelled"


def test_an_upload_is_repeated_safely(stranger: Stranger) -> None:
    first, again = (stranger.upload(b"text\n", Idempotency_Key="upload") for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert refused_fields(stranger.upload(b"other\n", Idempotency_Key="upload"))


# A server that nobody locked


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_server_without_a_key_does_not_bind_the_network(tmp_path: Path, host: str) -> None:
    environment = {"API__HOST": host, "SECURITY__API_KEY": None, "SECURITY__ALLOW_OPEN": None}
    with (
        pytest.raises(Exception, match="SECURITY__API_KEY"),
        running_stack(tmp_path, environment=environment),
    ):
        pass
