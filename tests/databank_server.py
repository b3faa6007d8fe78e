"""A real data bank, and one that misbehaves on demand."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SEND_SECONDS = 0.02


class DataBankServer:
    """Keeps files in memory. ``then`` queues how the next requests of a method are answered."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self._plans: dict[str, deque[Behaviour]] = defaultdict(deque)
        self._always: dict[str, Behaviour] = {}
        bank = self

        class BoundRequest(Request):
            data_bank = bank

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), BoundRequest)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()

    def put(self, data: bytes, file_id: str | None = None) -> str:
        """Store a file; returns its id."""
        name = file_id or sha256(data)
        self.files[name] = data
        return name

    def then(self, method: str, *behaviours: Behaviour) -> None:
        """Answer the next requests of this method like that, and all others as one should."""
        self._plans[method].extend(behaviours)

    def always(self, method: str, behaviour: Behaviour) -> None:
        """Answer all requests of this method like that, once nothing is planned."""
        self._always[method] = behaviour

    def behaviour(self, method: str) -> Behaviour:
        plan = self._plans[method]
        return plan.popleft() if plan else self._always.get(method, well)

    def seen(self, method: str) -> list[Request]:
        return [request for request in self.requests if request.command == method]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Request(BaseHTTPRequestHandler):
    """One request, and how to answer it."""

    data_bank: DataBankServer
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.data_bank.requests.append(self)
        self.close_connection = True
        with suppress(OSError):  # the client has had enough
            self.data_bank.behaviour(self.command)(self)

    do_GET = do_HEAD = do_POST = answer  # noqa: N815 (http.server's names)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Not on stderr."""

    @property
    def content(self) -> bytes | None:
        return self.data_bank.files.get(self.path.rpartition("/files/")[2])

    @property
    def start(self) -> int:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(found[1]) if found else 0

    def reply(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def receive(self) -> bytes:
        """The file of a multipart body; all of the body is read."""
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionAbortedError
        boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
        head, _, rest = body.partition(b"\r\n\r\n")
        assert head.startswith(b"--" + boundary + b"\r\n")
        self.disposition = head.decode()
        return rest.removesuffix(b"\r\n--" + boundary + b"--\r\n")


Behaviour = Callable[[Request], None]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def etag(data: bytes) -> str:
    return f'"{sha256(data)}"'


def well(request: Request) -> None:
    """As the contract says."""
    if request.command == "POST":
        data = request.receive()
        file_id = request.data_bank.put(data)
        stored = {"file_id": file_id, "size": len(data), "sha256": sha256(data)}
        request.reply(201, json.dumps(stored).encode())
        return
    data = request.content or b""
    if request.content is None:
        request.reply(404)
    elif request.start and request.headers["If-Range"] == etag(data):
        place = f"bytes {request.start}-{len(data) - 1}/{len(data)}"
        request.reply(206, data[request.start :], {"ETag": etag(data), "Content-Range": place})
    else:
        request.reply(200, data, {"ETag": etag(data)})


def status(number: int, **headers: str) -> Behaviour:
    """This status, with no body."""
    return lambda request: request.reply(number, b"", headers)


def body(data: bytes, number: int = 200, **headers: str) -> Behaviour:
    """This body, whatever was asked for; a POST is read first."""

    def behave(request: Request) -> None:
        if request.command == "POST":
            request.receive()
        request.reply(number, data, headers)

    return behave


def cut(count: int) -> Behaviour:
    """So many bytes of what was asked for, and then the connection is gone."""

    def behave(request: Request) -> None:
        data = request.content or b""
        sent = data[request.start : request.start + count]
        number = 206 if request.start else 200
        place = f"bytes {request.start}-{len(data) - 1}/{len(data)}"
        headers = {"ETag": etag(data), "Content-Range": place}
        request.reply(number, sent, headers, length=len(data) - request.start)
        request.wfile.flush()
        request.connection.shutdown(socket.SHUT_RDWR)

    return behave


def short(request: Request) -> None:
    """A chunked body that ends, as if it were whole, before its time."""
    data = request.content or b""
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.wfile.write(b"4\r\n%s\r\n0\r\n\r\n" % data[:4])


def hang_up(request: Request) -> None:
    """No answer at all."""
    request.connection.shutdown(socket.SHUT_RDWR)


def endless(request: Request) -> None:
    """A chunked body without an end."""
    request.send_response(201 if request.command == "POST" else 200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    block = b"x" * 65_536
    while True:
        request.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))


def trickle(request: Request) -> None:
    """The body, a byte at a time."""
    data = request.content or b""
    request.reply(200, b"", {"ETag": etag(data)}, length=len(data))
    for start in range(len(data)):
        request.wfile.write(data[start : start + 1])
        time.sleep(SEND_SECONDS)


def trickle_headers(request: Request) -> None:
    """Not even the headers come to an end."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        request.wfile.write(b"x")
        time.sleep(SEND_SECONDS)


def endless_interim(request: Request) -> None:
    """Interim answers, as fast as they are taken, and never the answer."""
    while True:
        request.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def steady_interim(request: Request) -> None:
    """Interim answers, few at a time but never too few, and never the answer."""
    while True:
        request.wfile.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 4)
        time.sleep(SEND_SECONDS)


def after_interim(request: Request) -> None:
    """A few interim answers, as HTTP allows, then the answer."""
    request.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3)
    well(request)


def switching(request: Request) -> None:
    """Another protocol, which nobody has asked for."""
    request.wfile.write(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")


def silent(request: Request) -> None:
    """Nothing, until the client goes away."""
    while request.rfile.read(1):
        pass


@contextmanager
def running_data_bank(tls: ssl.SSLContext | None = None) -> Iterator[DataBankServer]:
    """A data bank for a while."""
    server = DataBankServer(tls)
    try:
        yield server
    finally:
        server.close()
