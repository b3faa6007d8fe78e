"""One try of each request to the data bank, over HTTP."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self
from urllib.parse import urljoin, urlsplit

import httpcore
import structlog

from trainer_app import settings
from trainer_app.core.stopping import ShouldStop, never
from trainer_app.databank.multipart import Multipart
from trainer_app.databank.retry import TryAgain
from trainer_app.databank.wire import StoppableBackend, Stream, Timeouts
from trainer_app.errors import DataBankUnavailable, DataNotFound
from trainer_app.safe_paths import is_id

_MOST_REDIRECTS: Final = 3
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_KEEP_THE_METHOD: Final = frozenset({307, 308})
_PASSING: Final = frozenset({408, 425, 429})  # beside 5xx
_LONGEST_ANSWER: Final = 65_536  # bytes of JSON

_log = structlog.get_logger(__name__)


class OtherBytes(DataBankUnavailable):
    """The data bank has other bytes under this id than those that are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file in the data bank."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A file's bytes from ``start`` to its end."""

    start: int
    blocks: Iterator[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What is to be stored. ``stream`` makes the bytes anew for each try."""

    name: str
    size: int  # bytes
    sha256: str
    stream: Callable[[], Iterator[bytes]]


class DataBank:
    """A client of the data bank; use it in a ``with`` block.

    Each method is one try. They raise TryAgain for what may pass, DataNotFound, and
    DataBankUnavailable for what will not. Neither environment nor netrc is read: no proxy, and
    the key goes to the data bank's own origin alone.
    """

    def __init__(
        self,
        bank: settings.DataBank,
        *,
        request_id: str | None = None,
        timeouts: Timeouts | None = None,
        should_stop: ShouldStop = never,
    ) -> None:
        assert bank.url is not None, "there is a data bank"
        self._url = bank.url
        self._headers = {
            "User-Agent": "model-trainer",
            "Accept-Encoding": "identity",  # digests are of the bytes as they are
            "Connection": "close",
        }
        if bank.api_key:
            self._headers["X-API-Key"] = bank.api_key
        if request_id is not None:
            self._headers["X-Request-ID"] = request_id
        timeouts = timeouts or Timeouts()
        self._extensions = {
            "timeout": {
                "connect": timeouts.connect,
                "read": timeouts.silence,
                "write": timeouts.silence,
            }
        }
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl.create_default_context() if _is_https(self._url) else None,
            max_keepalive_connections=0,
            network_backend=StoppableBackend(timeouts, should_stop),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.close()

    def head(self, file_id: str) -> RemoteFile:
        """Size and digest of a file."""
        with self._exchange("HEAD", _path(file_id)) as answer:
            length, sha256 = answer.header("content-length"), _digest(answer)
        if length is None or not length.isascii() or not length.isdigit() or sha256 is None:
            raise DataBankUnavailable(
                "the data bank gives no size, or no SHA-256 as ETag, for this file"
            )
        return RemoteFile(size=int(length), sha256=sha256)

    @contextmanager
    def open(self, file_id: str, file: RemoteFile, *, start: int = 0) -> Iterator[Part]:
        """The file's bytes from ``start``, or from 0 where the server does not resume.

        Raises OtherBytes where the server says that the file has changed.
        """
        resume = {"Range": f"bytes={start}-", "If-Range": f'"{file.sha256}"'} if start else {}
        with self._exchange("GET", _path(file_id), resume) as answer:
            if _digest(answer) not in {None, file.sha256}:
                raise OtherBytes("the file has changed in the data bank")
            if answer.status == 206:
                given = answer.header("content-range")
                if given != f"bytes {start}-{file.size - 1}/{file.size}":
                    raise TryAgain("the data bank sends another range than asked for", wrong=True)
                yield Part(start=start, blocks=answer.blocks)
            else:
                yield Part(start=0, blocks=answer.blocks)

    def store(self, upload: Upload) -> str:
        """Send a file and return its id, once the answer says that the same bytes have arrived."""
        form = Multipart(upload.name, upload.size)
        with self._exchange("POST", "/files", form.headers, lambda: form.body(upload.stream())) as (
            answer
        ):
            text = answer.read(_LONGEST_ANSWER)
        try:
            stored: object = json.loads(text)
        except (ValueError, RecursionError):
            stored = None
        told = stored if isinstance(stored, dict) else {}
        file_id, size, sha256 = (told.get(name) for name in ("file_id", "size", "sha256"))
        # Of these types exactly: null and 12 have names as well, 3.0 and true equal numbers.
        if type(file_id) is not str or not is_id(file_id):
            raise TryAgain("the data bank gives no id for what it was sent", wrong=True)
        same = type(size) is int and size == upload.size
        if not same or type(sha256) is not str or sha256.lower() != upload.sha256:
            raise TryAgain("the data bank stored other bytes than were sent", wrong=True)
        return file_id

    @contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Generator[bytes]] | None = None,
    ) -> Iterator[_Answer]:
        url = f"{self._url}{path}"
        for _ in range(_MOST_REDIRECTS + 1):
            with self._request(method, url, headers or {}, body) as answer:
                if answer.status not in _REDIRECTS:
                    _check(answer, method)
                    yield answer
                    return
                url = _redirected(url, answer, method)
        raise DataBankUnavailable("the data bank redirects in a circle")

    @contextmanager
    def _request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Callable[[], Generator[bytes]] | None,
    ) -> Iterator[_Answer]:
        try:
            # A file that is being sent is closed with the exchange, not some time by the collector.
            with (
                nullcontext() if body is None else closing(body()) as content,
                self._pool.stream(
                    method,
                    url,
                    headers=[*self._headers.items(), *headers.items()],
                    content=content,
                    extensions=self._extensions,
                ) as response,
            ):
                stream = response.extensions["network_stream"]
                assert isinstance(stream, Stream)
                stream.head_has_ended()
                yield _Answer(response)
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
            # What the error says may name hosts: it is for the log.
            kind = type(error).__name__
            _log.info("the data bank failed", method=method, url=url, kind=kind, error=str(error))
            raise TryAgain(f"the data bank does not answer as it should: {kind}") from error


class _Answer:
    """The start of an answer, and its body while the exchange is open."""

    def __init__(self, response: httpcore.Response) -> None:
        self.status = response.status
        self.blocks = response.iter_stream()
        self._headers = {
            name.lower().decode("latin-1"): value.decode("latin-1")
            for name, value in response.headers
        }

    def header(self, name: str) -> str | None:
        return self._headers.get(name)

    def read(self, limit: int) -> bytes:
        data = b""
        for block in self.blocks:
            data += block
            if len(data) > limit:
                raise TryAgain("the data bank's answer does not end", wrong=True)
        return data


def _is_https(url: str) -> bool:
    return url.startswith("https:")


def _path(file_id: str) -> str:
    if not is_id(file_id):  # it becomes a part of a URL, and of file names
        raise DataNotFound("the data bank has no file of such an id")
    return f"/files/{file_id}"


def _digest(answer: _Answer) -> str | None:
    """The ETag, where it is a SHA-256: with or without quotes, weak or not."""
    found = re.fullmatch(r'(?:W/)?"?([0-9A-Fa-f]{64})"?', answer.header("etag") or "")
    return found and found[1].lower()


def _check(answer: _Answer, method: str) -> None:
    status = answer.status
    if status in {404, 410}:
        raise DataNotFound("the data bank has no such file")
    if status >= 500 or status in _PASSING:
        asked = answer.header("retry-after") or ""
        pause = float(asked) if re.fullmatch(r"[0-9]{1,6}", asked) else None
        raise TryAgain(f"the data bank answers {status} to {method}", pause_seconds=pause)
    if status == 416:
        raise TryAgain("the data bank refuses to resume", wrong=True)
    if status in {401, 403}:
        raise DataBankUnavailable(
            f"the data bank answers {status}: APP__DATA_BANK_API_KEY is not a key that it takes"
        )
    if status not in {200, 201, 206}:
        raise DataBankUnavailable(f"the data bank answers {status} to {method}")


def _redirected(url: str, answer: _Answer, method: str) -> str:
    """Where to ask instead: the same origin, since the key goes to no other."""
    try:
        target = urljoin(url, answer.header("location") or "")
        same = re.fullmatch(r"[!-~]+", target) is not None and _origin(target) == _origin(url)
    except ValueError:  # a bracket without its partner, a port that is no number
        target, same = "", False
    if not same:
        raise DataBankUnavailable("the data bank redirects to another host, which is not followed")
    if method == "POST" and answer.status not in _KEEP_THE_METHOD:
        raise DataBankUnavailable(f"the data bank answers {answer.status} to {method}")
    return target


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
