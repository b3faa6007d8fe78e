"""Connections that no peer can hang: each wait looks for a stop, and a trickle counts as silence.

An HTTP library's time-out bounds one read. A peer that sends a byte now and then, in its body or
in its headers, would keep a worker for days without ever exceeding it.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import httpcore

from trainer_app.core.stopping import ShouldStop, raise_if_stopped

_LOOK_SECONDS: Final = 0.25  # between two looks for a stop while nothing comes
_PIECE: Final = 65_536  # bytes written between two looks
_LONGEST_HEAD: Final = 262_144  # bytes before a body: more than any parser of heads takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a peer may take, in seconds."""

    connect: float = 5.0
    answer: float = 30.0  # until its first byte
    silence: float = 15.0  # without a byte, later and while it is sent to
    window: float = 30.0  # over which it must keep up ``slowest``, and for the rest of a head
    slowest: float = 1_024.0  # bytes a second


# For a request that waits for the answer.
SHORT: Final = Timeouts(connect=1.5, answer=2.5, silence=1.0, window=1.5)


class StoppableBackend(httpcore.SyncBackend):
    """Opens the connections."""

    def __init__(self, timeouts: Timeouts, should_stop: ShouldStop) -> None:
        self._timeouts = timeouts
        self._should_stop = should_stop

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        raise_if_stopped(self._should_stop)
        stream = super().connect_tcp(host, port, timeout, local_address, socket_options)
        return Stream(stream, self._timeouts, self._should_stop)


class Stream(httpcore.NetworkStream):
    """A connection for one request."""

    def __init__(
        self, stream: httpcore.NetworkStream, timeouts: Timeouts, should_stop: ShouldStop
    ) -> None:
        self._stream = stream
        self._timeouts = timeouts
        self._should_stop = should_stop
        self._received = _Rate(timeouts)
        self._sent = _Rate(timeouts)
        self._head: _Head | None = _Head(timeouts)

    def head_has_ended(self) -> None:
        """All of the answer's head has come; its body may be of any length."""
        self._head = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        begun = self._received.begun
        started = time.monotonic()
        data = self._wait(max_bytes, started + (timeout or 0.0 if begun else self._timeouts.answer))
        # The wait for the first byte is the peer's to think.
        waited = time.monotonic() - started if begun else 0.0
        if self._received.too_slow(len(data), waited):
            raise httpcore.ReadTimeout
        if self._head is not None and self._head.goes_on(len(data)):
            raise httpcore.RemoteProtocolError("the head of the answer does not end")
        return data

    def _wait(self, max_bytes: int, give_up_at: float) -> bytes:
        while True:
            raise_if_stopped(self._should_stop)
            left = give_up_at - time.monotonic()
            try:
                return self._stream.read(max_bytes, max(0.001, min(left, _LOOK_SECONDS)))
            except httpcore.ReadTimeout:
                if left <= _LOOK_SECONDS:
                    raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            raise_if_stopped(self._should_stop)
            piece = buffer[start : start + _PIECE]
            started = time.monotonic()
            self._stream.write(piece, timeout)
            if self._sent.too_slow(len(piece), time.monotonic() - started):
                raise httpcore.WriteTimeout

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, timeout)
        return Stream(stream, self._timeouts, self._should_stop)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


class _Rate:
    """Bytes over the time that was spent waiting for them, one window after another."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._waited = 0.0
        self._bytes = 0
        self.begun = False

    def too_slow(self, count: int, waited: float) -> bool:
        self.begun = True
        self._bytes += count
        self._waited += waited
        if self._waited < self._timeouts.window:
            return False
        slow = self._bytes < self._timeouts.slowest * self._waited
        self._waited, self._bytes = 0.0, 0
        return slow


class _Head:
    """What comes before an answer's body.

    Interim answers (RFC 9110, 15.2) are skipped, and there may be any number of them.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self._seconds = timeouts.window
        self._left = _LONGEST_HEAD
        self._must_end_by = float("inf")

    def goes_on(self, count: int) -> bool:
        """Whether, with so many bytes more, it has gone on for too long."""
        now = time.monotonic()
        self._must_end_by = min(self._must_end_by, now + self._seconds)
        self._left -= count
        return self._left < 0 or now > self._must_end_by
