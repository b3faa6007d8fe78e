"""Requests that no library sends, to the real server: all get an answer of ours, and no 5xx."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.api.served import served
from tests.conftest import RedisServer

BODY = b'{"method": "char", "vocab_size": 100, "corpus_path": "missing.txt"}'  # 404 once it is read
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
WHOLE = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)  # all chunks, and where trailers begin
EXTENDED = WHOLE.replace(b"\r\n", b";a=b\r\n", 1)


def get(*headers: str, target: str = "/runs", version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/{version}", *headers, "", ""]).encode("latin-1")


def post(body: bytes, *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST /tokenizers/train HTTP/{version}", "Host: localhost", JSON, *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


HOST = "Host: localhost"
LENGTH = f"Content-Length: {len(BODY)}"
NOT_HTTP = {
    "a bare line feed": (b"GET /runs HTTP/1.1\nHost: localhost\n\n", 400),
    "no slash": (get(HOST, target="runs"), 400),
    "a method in small letters": (b"get /runs HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "HTTP/9": (get(HOST, version="9"), 400),
    "HTTP/2's first words": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a TLS handshake": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + b"a" * 300 + b"\r\n\r\n", 400),
    "a folded header": (get(HOST, "X-A: b\r\n c"), 400),
    "a header without a colon": (get(HOST, "X-A"), 400),
    "a blank before the colon": (get(HOST, "X-A : b"), 400),
    "NUL in a header": (get(HOST, "Range: bytes=0-0\0"), 400),
    "two hosts": (get(HOST, "Host: evil.example"), 400),
    "an address of 5,000 characters": (get(HOST, target="/runs/" + "x" * 5_000), 414),
    "a header of 9,000 characters": (get(HOST, "X-Api-Key: " + "k" * 9_000), 431),
    "200 headers": (get(HOST, *(f"X-{number}: 1" for number in range(200))), 431),
    "an expectation": (post(BODY, LENGTH, "Expect: 200-ok"), 417),
    "an unknown transfer coding": (post(WHOLE + b"\r\n", "Transfer-Encoding: xchunked"), 400),
    "chunked twice": (post(WHOLE + b"\r\n", CHUNKED, CHUNKED), 400),
    "chunks of HTTP/1.0": (post(WHOLE + b"\r\n", CHUNKED, version="1.0"), 400),
    "both lengths": (post(WHOLE + b"\r\n", CHUNKED, LENGTH), 400),
    "two lengths": (post(BODY, LENGTH, "Content-Length: 1"), 400),
    "a list of lengths": (post(BODY, f"{LENGTH}, {len(BODY)}"), 400),
    "a length with a sign": (post(BODY, f"Content-Length: +{len(BODY)}"), 400),
    "a negative length": (post(BODY, "Content-Length: -1"), 400),
    "no length": (post(BODY, "Content-Length: "), 400),
}
BAD_CHUNKS = {
    "a size that is none": b"zz\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a negative size": b"-1\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a size with a prefix": b"0x43\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk that is longer than its size": b"3\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a trailer without a colon": WHOLE + b"nonsense\r\n\r\n",
    "a trailer that frames": WHOLE + b"Content-Length: 5\r\n\r\n",
    "an extension that is none": b"43;=\r\n" + BODY + b"\r\n0\r\n\r\n",
}
CUT_CHUNKS = {
    "before the first one": b"",
    "in a size": b"8",
    "in a chunk": b"8\r\nhalf",
    "behind a chunk": b"8\r\nhalftext",
    "in the end of a chunk": b"8\r\nhalftext\r",
    "before the last one": b"8\r\nhalftext\r\n",
    "in the last one": WHOLE,
}
UNDERSTOOD = {
    "an address with a host": (get(HOST, target="http://localhost/runs"), 200),
    "an address with our host and a foreign Host": (
        get("Host: evil.example", target="http://127.0.0.1:1/runs"),
        403,
    ),
    "an address with our host, written big": (get(HOST, target="HTTP://LOCALHOST/runs"), 200),
    "an address with our host and no Host": (get(target="HTTP://LOCALHOST/runs"), 403),
    "an address with a foreign host": (get(HOST, target="http://evil.example/runs"), 403),
    "an address with a foreign host that is open": (
        get(HOST, target="https://evil.example/healthz"),
        403,
    ),
    "an address with a foreign host and no path": (get(HOST, target="http://evil.example"), 403),
    "an address with a foreign host and a query": (get(HOST, target="http://evil.example?/"), 403),
    "an address with a user": (get(HOST, target="http://localhost@evil.example/runs"), 403),
    "an address with a user like ours": (get(HOST, target="http://localhost:1@evil/runs"), 403),
    "an address with a backslash": (get(HOST, target="http://evil\\@localhost/runs"), 403),
    "an address with no host": (get(HOST, target="http:///runs"), 403),
    "an address of another scheme": (get(HOST, target="x://evil.example/runs"), 403),
    "an IPv6 host": (get("Host: [::1]:8000"), 200),
    "an IPv6 host that is not ours": (get("Host: [::ffff:127.0.0.1]"), 403),
    "half an IPv6 host": (get("Host: [::1"), 403),
    "a zone in a host": (get("Host: [::1%25lo]"), 403),
    "a user in a host": (get("Host: localhost@evil.example"), 403),
    "a host with a dot at its end": (get("Host: localhost."), 403),
    "no host": (get(), 403),
    "no host of HTTP/1.0": (get(version="1.0"), 403),
    "a bad escape": (get(HOST, target="/runs/%zz"), 404),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "CONNECT elsewhere": (b"CONNECT evil:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
    "CONNECT": (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "TRACE": (b"TRACE /runs HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "a method of nobody's": (b"BREW /runs HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "a length of 30 digits": (post(BODY, "Content-Length: " + "9" * 30), 413),
    "trailers": (post(WHOLE + b"X-Api-Key: x\r\n\r\n", CHUNKED, "Trailer: X-Api-Key"), 404),
    "an extension of a chunk": (post(EXTENDED + b"\r\n", CHUNKED), 404),
    "an upgrade to HTTP/2": (get(HOST, "Connection: Upgrade", "Upgrade: h2c"), 200),
    "an upgrade to a web socket": (get(HOST, "Connection: Upgrade", "Upgrade: websocket"), 200),
    "an upgrade of a POST": (post(BODY, LENGTH, "Connection: upgrade", "Upgrade: WebSocket"), 404),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root of the server, with its log."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def port(redis_server: RedisServer, migrated_sqlite: Path, root: Path) -> Iterator[int]:
    """One server for all of this module, which leaves nothing in it."""
    (root / "trainer.db").write_bytes(migrated_sqlite.read_bytes())
    environment = {
        "APP__DATA_ROOT": str(root),
        "DATABASE__URL": f"sqlite:///{root / 'trainer.db'}",
        "REDIS__URL": redis_server.url,
    }
    with served(root / "server.log", environment) as port:
        yield port


def answer_to(port: int, request: bytes) -> Answer:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
        return answer_over(connection, request)


def answer_over(connection: socket.socket, request: bytes) -> Answer:
    connection.sendall(request)
    return next_answer(connection)


def next_answer(connection: socket.socket) -> Answer:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(status=response.status, headers=response.headers, body=response.read())


def assert_ours(answer: Answer, status: int) -> None:
    assert answer.status == status, answer.body
    request_id = answer.headers["X-Request-ID"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    if status >= 400:
        assert answer.headers["Content-Type"] == "application/json"
        found = json.loads(answer.body)
        assert set(found) - {"details"} == {"code", "message", "request_id"}
        assert found["request_id"] == request_id
        assert "evil" not in found["message"]


@pytest.mark.parametrize(("request_bytes", "status"), NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_cannot_be_read_as_http_gets_the_body_of_every_error(
    port: int, request_bytes: bytes, status: int
) -> None:
    answer = answer_to(port, request_bytes)
    assert_ours(answer, status)
    assert json.loads(answer.body)["code"] == "INVALID_INPUT"
    assert answer.headers["Connection"] == "close"


def test_what_cannot_be_read_is_not_logged_as_the_request_before_it(port: int, root: Path) -> None:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
        answers = [
            answer_over(connection, request)
            for request in (get(HOST, target="/runs/before"), get(HOST, "Content-Length: +2"))
        ]
    assert [answer.status for answer in answers] == [404, 400]

    request_id = answers[-1].headers["X-Request-ID"]
    lines = (root / "server.log").read_text().splitlines()
    (line,) = (line for line in lines if request_id in line)
    assert "before" not in line
    assert not {"method", "path"} & set(json.loads(line))


@pytest.mark.parametrize("chunks", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
def test_malformed_chunks_are_a_bad_request(port: int, chunks: bytes) -> None:
    assert_ours(answer_to(port, post(chunks, CHUNKED)), 400)


@pytest.mark.parametrize("chunks", CUT_CHUNKS.values(), ids=CUT_CHUNKS)
@pytest.mark.parametrize("path", ["/corpora", "/tokenizers/train"])
def test_chunks_that_break_off_are_told_from_malformed_ones(
    port: int, path: str, chunks: bytes
) -> None:
    kind = JSON if path == "/tokenizers/train" else "Content-Type: text/plain"
    head = "\r\n".join([f"POST {path} HTTP/1.1", HOST, kind, CHUNKED, "", ""])
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
        connection.sendall(head.encode() + chunks)
        connection.shutdown(socket.SHUT_WR)
        answer = next_answer(connection)
    assert_ours(answer, 400)
    message = json.loads(answer.body)["message"]
    assert message == "the body ends before the end of its last chunk"


@pytest.mark.parametrize(("request_bytes", "status"), UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_what_is_odd_but_http_is_understood(port: int, request_bytes: bytes, status: int) -> None:
    assert_ours(answer_to(port, request_bytes), status)


@pytest.mark.parametrize("target", ["/", "http://localhost", "http://localhost?x=1"])
def test_an_address_without_a_path_is_that_of_the_root(port: int, target: str) -> None:
    answer = answer_to(port, get(HOST, target=target))
    assert (answer.status, answer.headers["Location"]) == (302, "/docs")
    answer = answer_to(port, get(HOST, target=target).replace(b"GET", b"POST"))
    assert_ours(answer, 405)


@pytest.mark.parametrize(
    "header",
    [
        "SCRIPT_NAME: /runs",
        "SCRIPT_NAME: //evil.example",
        "PATH_INFO: /openapi.json",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Prefix: //evil.example",
        "X-Forwarded-Proto: https",
        "X-Original-URL: /openapi.json",
        "X-HTTP-Method-Override: DELETE",
    ],
)
def test_no_header_changes_what_was_asked_for(port: int, header: str) -> None:
    answer = answer_to(port, get(HOST, header, target="/runs?limit=1"))
    assert_ours(answer, 200)
    assert json.loads(answer.body) == {"data": [], "has_more": False, "next": None}
    answer = answer_to(port, get(HOST, header, target="/"))
    assert (answer.status, answer.headers["Location"]) == (302, "/docs")


def test_a_body_that_is_too_large_is_not_asked_for(port: int) -> None:
    head = post(b"", "Content-Length: 99999999", "Expect: 100-continue")
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
        connection.sendall(head)
        read = b""
        while piece := connection.recv(65_536):
            read += piece
    assert read.startswith(b"HTTP/1.1 413 ")


def test_one_request_behind_another_is_answered_in_turn(port: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
        health = get(HOST, target="/healthz")
        connection.sendall(health + get(HOST, "Connection: close", target="/runs/none"))
        read = b""
        while piece := connection.recv(65_536):
            read += piece
    assert read.count(b"HTTP/1.1 ") == 2
    assert read.index(b"200 OK") < read.index(b"404 NOT FOUND")
