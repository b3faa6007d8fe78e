"""News of jobs on Redis, for bots and dashboards.

Each event is published on a channel and added to a capped stream, so that a listener that was
away can catch up. Sending happens in a thread of its own: a training loop never waits for Redis,
and what cannot be sent is dropped (the database holds what matters).
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections import deque
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
_HELD_BACK: Final = 12  # events of one type and job: evaluations may come faster than they are told
_WAITING: Final = 1_000  # events kept while Redis is slow; what comes after that is dropped
_FLUSH_SECONDS: Final = 5.0

Event = dict[str, object]
ErrorKind = Literal["user", "system"]

_log = structlog.get_logger(__name__)


class _Line:
    """What one job has to tell, in order, and when its next progress of each type may be told.

    Jobs do not share one: what one of them holds back must not delay the news of another.
    """

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self._events: deque[tuple[Event, bool]] = deque()  # and whether it is held to the pace
        self._free_at: dict[object, float] = {}  # by type

    def __len__(self) -> int:
        return len(self._events)

    @property
    def due_at(self) -> float:
        """When the oldest one may be sent, by the monotonic clock."""
        event, paced = self._events[0]
        return self._free_at.get(event["type"], 0.0) if paced else 0.0

    def is_open_for(self, kind: object) -> bool:
        """Whether progress of this type may be told now."""
        free_at = self._free_at.get(kind, 0.0)
        return free_at <= time.monotonic() and not self._held_back(kind)

    def add(self, event: Event, *, paced: bool) -> None:
        """Queue one; where too many are held back it takes the place of the oldest of its type."""
        if paced and len(held := self._held_back(event["type"])) >= _HELD_BACK:
            del self._events[held[0]]
        self._events.append((event, paced))

    def take(self) -> Event:
        """The oldest one, which is about to be sent."""
        event, paced = self._events.popleft()
        if paced:
            self._free_at[event["type"]] = time.monotonic() + _PROGRESS_SECONDS
        return event

    def _held_back(self, kind: object) -> list[int]:
        return [at for at, (event, _) in enumerate(self._events) if event["type"] == kind]


class Publisher:
    """Sends events from a thread; ``close`` waits a little for what is left."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._changed = threading.Condition()
        self._lines: list[_Line] = []  # those in which something waits
        self._is_closing = False
        self._thread = threading.Thread(target=self._send_all, name="events", daemon=True)
        self._thread.start()

    def line_of(self, job_id: str) -> _Line:
        """Where a job's events wait: behind those of its attempt before, if some are left."""
        with self._changed:
            waiting = (line for line in self._lines if line.job_id == job_id)
            return next(waiting, None) or _Line(job_id)

    def send(self, event: Event, line: _Line) -> None:
        """Queue one event; dropped with a warning when too many wait."""
        with self._changed:
            self._add(event, line, paced=False)

    def send_progress(self, event: Event, line: _Line, *, may_drop: bool) -> None:
        """Queue one event that is held to the pace of its type; one that ``may_drop`` has to fit.

        Of those that may not be dropped the newest are kept, should they come too fast for long.
        """
        with self._changed:
            if not may_drop or line.is_open_for(event["type"]):
                self._add(event, line, paced=True)

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(_FLUSH_SECONDS)

    def _add(self, event: Event, line: _Line, *, paced: bool) -> None:
        if sum(map(len, self._lines)) >= _WAITING:
            _log.warning("an event was dropped", type=event["type"])
            return
        if not line:
            self._lines.append(line)
        line.add(event, paced=paced)
        self._changed.notify()

    def _send_all(self) -> None:
        while (event := self._next()) is not None:
            try:
                text = encode(event)
                with self._redis.pipeline(transaction=False) as pipe:
                    pipe.publish(CHANNEL, text)
                    pipe.xadd(STREAM, {"event": text}, maxlen=_STREAM_LENGTH, approximate=True)
                    pipe.execute()
            except (redis.RedisError, OSError) as error:
                _log.warning("an event was not sent", type=event["type"], error=str(error))
            except Exception:  # those behind it are not to suffer by it
                _log.exception("an event could not be sent", type=event["type"])

    def _next(self) -> Event | None:
        """Wait for the next event that may be sent; None: there are no more."""
        with self._changed:
            while True:
                line = min(self._lines, key=lambda line: line.due_at, default=None)
                if line is None:
                    if self._is_closing:
                        return None
                    self._changed.wait()
                elif (seconds := line.due_at - time.monotonic()) > 0:
                    self._changed.wait(seconds)
                else:
                    event = line.take()
                    if not line:
                        self._lines.remove(line)
                    return event


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
        self._line = _Line(job_id) if publisher is None else publisher.line_of(job_id)

    def started(self) -> None:
        """A worker has taken the job."""
        self._send({"type": "trainer.job.started.v1", **self._lifecycle})

    def progress(self, percent: int, message: str) -> None:
        """How far the job is: 0 to 99."""
        self._send_progress(
            {
                "type": "trainer.job.progress.v1",
                **self._lifecycle,
                "progress": max(0, min(99, percent)),
                "message": message,
            },
            may_drop=True,
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
        """A point of the curve: one that comes too soon is dropped, an evaluation is held back.

        Of evaluations that come faster than they may be told, for long, the newest are kept.
        """
        self._send_progress(
            {"type": "trainer.metrics.progress.v1", **self._common, **values},
            may_drop=not evaluation,
        )

    def metrics_completed(self, values: Mapping[str, object]) -> None:
        """The final figures of a run."""
        self._send({"type": "trainer.metrics.completed.v1", **self._common, **values})

    def _send(self, event: Event) -> None:
        if self._publisher is not None:
            self._publisher.send(event, self._line)

    def _send_progress(self, event: Event, *, may_drop: bool) -> None:
        if self._publisher is not None:
            self._publisher.send_progress(event, self._line, may_drop=may_drop)


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
