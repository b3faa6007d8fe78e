"""A client of the API as somebody would write it who has read the contract and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

Json = dict[str, object]

FINAL = {"completed", "failed", "cancelled"}
ERROR_CODES = {
    "INVALID_INPUT": {400, 408, 412, 413, 414, 415, 416, 417, 422, 431},
    "UNAUTHORIZED": {401},
    "FORBIDDEN": {403},
    "NOT_FOUND": {404},
    "RUN_NOT_FOUND": {404},
    "TOKENIZER_NOT_FOUND": {404},
    "CORPUS_NOT_FOUND": {404},
    "EVAL_NOT_FOUND": {404},
    "DATA_NOT_FOUND": {404},
    "METHOD_NOT_ALLOWED": {405},
    "CONFLICT": {409},
    "NOT_READY": {409},
    "MODEL_INCOMPATIBLE": {409},
    "ALREADY_FINISHED": {409},
    "CORPUS_EMPTY": {422},
    "CORPUS_NOT_TEXT": {422},
    "RATE_LIMITED": {429},
    "UNAVAILABLE": {503},
}
WAIT_SECONDS = 100.0


class Stranger:
    """Sends requests and holds every answer to what section 1 of the contract promises."""

    def __init__(self, url: str, **headers: str) -> None:
        self.http = httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.http.close()

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """One request; ``body`` goes as JSON."""
        headers = dict(headers or {})
        if body is not None:
            content = json.dumps(body).encode()  # half a surrogate pair included
            headers["Content-Type"] = "application/json"
        answer = self.http.request(method, path, content=content, headers=headers)
        check(answer)
        return answer

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.send("GET", path, headers={n.replace("_", "-"): v for n, v in headers.items()})

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send("POST", path, body, headers=named)

    def upload(self, data: bytes, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send(
            "POST", "/corpora", content=data, headers={"Content-Type": "text/plain", **named}
        )

    def wait(self, path: str, seconds: float = WAIT_SECONDS) -> Json:
        """What the address answers once its status is final."""
        give_up_at = time.monotonic() + seconds
        while True:
            answer = self.get(path)
            found: Json = answer.json()
            assert answer.status_code == 200, found
            if found["status"] in FINAL:
                return found
            assert time.monotonic() < give_up_at, f"{path} does not end: {found}"
            time.sleep(0.2)

    def download(self, path: str, target: Path) -> httpx.Headers:
        with self.http.stream("GET", path) as answer:
            assert answer.status_code == 200
            target.write_bytes(b"".join(answer.iter_bytes()))
            return answer.headers


def check(answer: httpx.Response) -> None:
    """Every answer has a request id; every error the one body, and a code that fits its status."""
    assert answer.headers["X-Request-ID"]
    if answer.status_code < 400 or answer.request.url.path == "/readyz":
        return
    assert answer.status_code != 500, answer.text
    body: Json = answer.json()
    assert set(body) - {"details"} == {"code", "message", "request_id"}
    assert answer.status_code in ERROR_CODES[str(body["code"])], body
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert isinstance(body["message"], str)
    assert body["message"]
    assert "Traceback" not in answer.text
    details = body.get("details", [])
    assert isinstance(details, list)
    for detail in details:
        assert set(detail) == {"field", "message"}


def code(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error."""
    return answer.status_code, answer.json()["code"]


def refused_fields(answer: httpx.Response) -> set[str]:
    """The fields that a 422 names."""
    assert code(answer) == (422, "INVALID_INPUT"), answer.text
    return {detail["field"].partition(".")[0] for detail in answer.json()["details"]}
