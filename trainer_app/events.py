"""News of jobs on Redis, for bots and dashboards.

Each event is published on a channel and added to a capped stream, so that a listener that was
away can catch up. Sending happens in a thread of its own: a training loop never waits for Redis,
and what cannot be sent is dropped (the database holds what matters).
"""

from __future__ import annotations

import json
import math
import queue
import sys
import threading
import time
from collections.abc import Mapping
from typing import Final, Literal

import redis
import structlog

from trainer_app.settings import Settings

CHANNEL: Final = "trainer:events"
STREAM: Final = "trainer:events:stream"
_STREAM_LENGTH: Final = 10_000
# At most four progress events a second of each type, also for who counts with a shaky clock.
_PROGRESS_SECONDS: Final = 0.27
_BEHIND: Final = 12  # events that wait: evaluations come faster than they may be told
_WAITING: Final = 1_000  # events kept while Redis is slow; the oldest news matter least
_FLUSH_SECONDS: Final = 5.0

Event = dict[str, object]
ErrorKind = Literal["user", "system"]

_log = structlog.get_logger(__name__)


class _Pace:
    """Keeps the progress events of one type apart."""

    def __init__(self) -> None:
        self._next = 0.0

    def wait(self) -> None:
        """Return when the next one may be sent, which is at once for most."""
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = time.monotonic() + _PROGRESS_SECONDS


class Publisher:
    """Sends events from a thread; ``close`` waits a little for what is left."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._waiting: queue.Queue[tuple[Event, _Pace | None] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._send_all, name="events", daemon=True)
        self._thread.start()

    @property
    def is_behind(self) -> bool:
        """Whether more waits than a few seconds can send."""
        return self._waiting.qsize() > _BEHIND

    def send(self, event: Event, pace: _Pace | None = None) -> None:
        """Queue one event; dropped with a warning when too many wait."""
        try:
            self._waiting.put_nowait((event, pace))
        except queue.Full:
            _log.warning("an event was dropped", type=event["type"])

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        try:
            self._waiting.put(None, timeout=_FLUSH_SECONDS)
        except queue.Full:
            return
        self._thread.join(_FLUSH_SECONDS)

    def _send_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            event, pace = item
            if pace is not None:
                pace.wait()
            text = encode(event)
            try:
                with self._redis.pipeline(transaction=False) as pipe:
                    pipe.publish(CHANNEL, text)
                    pipe.xadd(STREAM, {"event": text}, maxlen=_STREAM_LENGTH, approximate=True)
                    pipe.execute()
            except (redis.RedisError, OSError) as error:
                _log.warning("an event was not sent", type=event["type"], error=str(error))


def encode(event: Mapping[str, object]) -> str:
    """Compact JSON without NaN or Infinity, which JSON has not.

    The largest number stands for them: they come from an overflow, and where the contract says
    float, a reader does not expect null.
    """
    return json.dumps(
        {name: _jsonable(value) for name, value in event.items()},
        separators=(",", ":"),
        allow_nan=False,
    )


def _jsonable(value: object) -> object:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return math.copysign(sys.float_info.max, value)


class JobEvents:
    """The events of one job, in the contract's order and form."""

    def __init__(
        self, publisher: Publisher | None, *, job_id: str, user_id: int, queue_name: str
    ) -> None:
        """``publisher`` is None for a job that is no run: nobody is told of it."""
        self._publisher = publisher
        self._common: Event = {"job_id": job_id, "user_id": user_id}
        self._lifecycle: Event = {**self._common, "domain": "trainer", "queue": queue_name}
        self.queue_name = queue_name
        self._told_at: dict[str, float] = {}
        self._paces: dict[str, _Pace] = {}

    def started(self) -> None:
        """A worker has taken the job."""
        self._send({"type": "trainer.job.started.v1", **self._lifecycle})

    def progress(self, percent: int, message: str) -> None:
        """How far the job is: 0 to 99."""
        self._throttled(
            {
                "type": "trainer.job.progress.v1",
                **self._lifecycle,
                "progress": max(0, min(99, percent)),
                "message": message,
            }
        )

    def completed(self, *, result_id: str, result_bytes: int) -> None:
        """The job's result is there."""
        self._send(
            {
                "type": "trainer.job.completed.v1",
                **self._lifecycle,
                "result_id": result_id,
                "result_bytes": result_bytes,
                "progress": 100,
            }
        )

    def failed(self, kind: ErrorKind, message: str) -> None:
        """The job has ended without a result; a cancelled one is a user's failure."""
        self._send(
            {
                "type": "trainer.job.failed.v1",
                **self._lifecycle,
                "error_kind": kind,
                "message": message,
            }
        )

    def metrics_config(self, values: Mapping[str, object]) -> None:
        """What is trained, and on what."""
        self._send({"type": "trainer.metrics.config.v1", **self._common, **values})

    def metrics_progress(self, values: Mapping[str, object], *, evaluation: bool = False) -> None:
        """A point of the curve: one that comes too soon is dropped, an evaluation is held back."""
        event: Event = {"type": "trainer.metrics.progress.v1", **self._common, **values}
        behind = self._publisher is not None and self._publisher.is_behind
        if evaluation and not behind:
            self._paced(event)
        else:
            self._throttled(event)

    def metrics_completed(self, values: Mapping[str, object]) -> None:
        """The final figures of a run."""
        self._send({"type": "trainer.metrics.completed.v1", **self._common, **values})

    def _throttled(self, event: Event) -> None:
        told_at = self._told_at.get(str(event["type"]), -math.inf)
        if time.monotonic() - told_at >= _PROGRESS_SECONDS:
            self._paced(event)

    def _paced(self, event: Event) -> None:
        kind = str(event["type"])
        self._told_at[kind] = time.monotonic()
        self._send(event, self._paces.setdefault(kind, _Pace()))

    def _send(self, event: Event, pace: _Pace | None = None) -> None:
        if self._publisher is not None:
            self._publisher.send(event, pace)


def connect(settings: Settings) -> redis.Redis:
    """A client whose every call ends within the settings' time-out."""
    return redis.Redis.from_url(
        settings.redis.url,
        socket_timeout=settings.redis.timeout_seconds,
        socket_connect_timeout=settings.redis.timeout_seconds,
        health_check_interval=30,
        decode_responses=True,
        encoding_errors="replace",  # clients may write what they like
    )
