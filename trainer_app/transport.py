"""HTTP as the client needs it: time-outs, errors as exceptions, retries of what can be repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import httpx

from trainer_app.errors import TrainerError
from trainer_app.sse import Event, read_events

TRIES: Final = 4  # of a request that does not reach the server and can be repeated
_STREAM_SILENCE_SECONDS: Final = 45.0  # a stream says something every 15 s

Fields = Mapping[str, object]


class ApiError(Exception):
    """The server refused the request, with one of the codes of its error body."""

    def __init__(
        self,
        *,
        status: int,
        code: str,
        message: str,
        details: tuple[tuple[str, str], ...] = (),  # fields and what is wrong with them
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.request_id = request_id


class NotReachable(TrainerError):
    """No server answers at this URL."""

    code = "UNAVAILABLE"


class Transport:
    """The connections to one server; every request has a time-out."""

    def __init__(self, base_url: str, *, api_key: str | None, timeout: float) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={b"X-Api-Key": api_key.encode()} if api_key else None,
            timeout=httpx.Timeout(timeout, connect=5.0),
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def get(self, path: str, query: Fields | None = None) -> httpx.Response:
        """A GET does not change anything: one that does not get through is sent again."""
        for attempt in range(1, TRIES):
            try:
                return self.send("GET", path, params=_query(query or {}))
            except NotReachable:
                time.sleep(0.05 * 2**attempt)
        return self.send("GET", path, params=_query(query or {}))

    def post(
        self, path: str, fields: Fields | None = None, key: str | None = None
    ) -> httpx.Response:
        """A POST of a JSON body, or of none; ``key`` makes it safe to repeat."""
        headers = {"Idempotency-Key": key} if key else {}
        if fields is None:
            return self.send("POST", path, headers=headers)
        headers["Content-Type"] = "application/json"
        return self.send("POST", path, headers=headers, content=json.dumps(fields))

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: str | Iterator[bytes] | None = None,
    ) -> httpx.Response:
        """One request; raises ApiError or NotReachable."""
        try:
            response = self._http.request(
                method, path, params=params, headers=headers, content=content
            )
        except httpx.TransportError as error:
            raise self._not_reachable(error) from error
        _check(response)
        return response

    @contextmanager
    def open(
        self,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        silence: float = _STREAM_SILENCE_SECONDS,
    ) -> Iterator[httpx.Response]:
        """An answer whose body is read piece by piece."""
        timeout = httpx.Timeout(silence, connect=5.0)
        try:
            with self._http.stream(
                "GET", path, params=params, headers=headers, timeout=timeout
            ) as response:
                if response.is_error:
                    response.read()
                    _check(response)
                yield response
        except httpx.TransportError as error:
            raise self._not_reachable(error) from error

    def events(self, path: str, query: Fields, last_id: str) -> Iterator[Event]:
        """The events of a stream, from after ``last_id`` on."""
        headers = {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        with self.open(path, params=_query(query), headers=headers) as response:
            yield from read_events(response.iter_bytes())

    def _not_reachable(self, error: httpx.TransportError) -> NotReachable:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return NotReachable(
                f"no server answers at {self.base_url}: start one with `trainer up`, "
                "or name another with --url or TRAINER_URL"
            )
        reason = str(error) or type(error).__name__
        return NotReachable(f"the connection to {self.base_url} broke: {reason}")


def _query(fields: Fields) -> dict[str, str]:
    return {name: str(value) for name, value in fields.items() if value is not None}


def _check(response: httpx.Response) -> None:
    """Raise ApiError for an answer that is an error, ours or a proxy's."""
    if response.is_success:
        return
    try:
        body = response.json()
        raise ApiError(
            status=response.status_code,
            code=body["code"],
            message=body["message"],
            details=tuple((item["field"], item["message"]) for item in body.get("details", ())),
            request_id=body["request_id"],
        )
    except (ValueError, KeyError, TypeError) as error:
        message = f"{response.url} answered {response.status_code} {response.reason_phrase}"
        raise ApiError(
            status=response.status_code, code="UNKNOWN", message=f"{message}, not as this API does"
        ) from error
