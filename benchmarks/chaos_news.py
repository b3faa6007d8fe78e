"""What a stack tells of its runs, as a bot hears it that follows the stream of events.

News may be lost: with a broker that is killed or wiped, and with a process that is killed before it
has sent them. What is heard must be true and in order all the same, and of what went on while all
was left alone nothing may be missing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import redis

from benchmarks.chaos_arena import Arena
from trainer_app.errors import Unavailable
from trainer_app.events import STREAM

STARTED: Final = "trainer.job.started.v1"
PROGRESS: Final = "trainer.job.progress.v1"
COMPLETED: Final = "trainer.job.completed.v1"
FAILED: Final = "trainer.job.failed.v1"
CONFIG: Final = "trainer.metrics.config.v1"
METRICS: Final = "trainer.metrics.progress.v1"
FIGURES: Final = "trainer.metrics.completed.v1"

# What may come right after what, where nothing is lost. An attempt that hands its run back, or is
# killed, tells nobody of its end.
_GOES_ON: Final = frozenset({STARTED, COMPLETED, FAILED})
_AFTER: Final[Mapping[str | None, frozenset[str]]] = {
    None: frozenset({STARTED, FAILED}),  # the latter of a run that is cancelled while it waits
    STARTED: _GOES_ON | {CONFIG},
    CONFIG: _GOES_ON | {PROGRESS, METRICS},
    PROGRESS: _GOES_ON | {PROGRESS, METRICS},
    METRICS: _GOES_ON | {PROGRESS, METRICS},
    FAILED: frozenset({STARTED, FAILED}),  # it was resumed
    COMPLETED: frozenset({FIGURES}),
    FIGURES: frozenset(),
}
_LIFECYCLE: Final = frozenset({STARTED, PROGRESS, COMPLETED, FAILED})
_FLOATS: Final[Mapping[str, tuple[str, ...]]] = {
    METRICS: ("train_loss", "train_ppl", "grad_norm", "samples_per_sec", "loss", "perplexity"),
    FIGURES: ("test_loss", "test_ppl"),
    CONFIG: ("learning_rate",),
}
_SILENCE_SECONDS: Final = 3.0  # a publisher sends the little that waits within
_PATIENCE_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.1  # what is wiped before it is seen is lost

Event = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event, and when the broker took it, in unix seconds."""

    at: float
    event: Event


class News(threading.Thread):
    """Follows the stream of events until ``stop``, whatever becomes of the broker."""

    def __init__(self, arena: Arena) -> None:
        super().__init__(daemon=True)
        self._arena = arena
        self._told: list[Told] = []
        self._last = "0-0"
        self._heard_at = time.monotonic()
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            with suppress(redis.RedisError, Unavailable):
                self._follow()

    def stop(self) -> None:
        """Hear what is still under way, and end the thread."""
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < min(give_up_at, self._heard_at + _SILENCE_SECONDS):
            time.sleep(_LOOK_SECONDS)
        self._stopped.set()
        self.join()

    def __len__(self) -> int:
        return len(self._told)

    def of(self, run_id: str) -> list[Told]:
        """What was told of a run, in order."""
        return [told for told in self._told if told.event["job_id"] == run_id]

    def _follow(self) -> None:
        url = self._arena.state["redis_url"]
        with redis.Redis.from_url(
            url, socket_timeout=2, socket_connect_timeout=2, decode_responses=True
        ) as client:
            while not self._stopped.wait(_LOOK_SECONDS):
                for name, fields in client.xrange(STREAM, min=f"({self._last}") or []:
                    self._last = str(name)
                    self._heard_at = time.monotonic()
                    at = int(self._last.partition("-")[0]) / 1_000
                    self._told.append(Told(at=at, event=json.loads(fields["event"])))


def untrue(told: Sequence[Told], *, status: str, ends: int) -> Iterator[str]:
    """What must not have been told, whatever was lost, of a run that stands where it does.

    ``ends``: how often it can have ended otherwise than by its completion.
    """
    types = [str(one.event["type"]) for one in told]
    for one in told:
        yield from _malformed(one.event)
    for kind in (COMPLETED, FIGURES):
        if types.count(kind) > (status == "completed"):
            yield f"{types.count(kind)} times {kind}, and it is {status}"
    if types.count(FAILED) > ends:
        yield f"{types.count(FAILED)} times {FAILED}, of {ends} ends at most"
    for number, kind in enumerate(types):
        if kind in {COMPLETED, FIGURES} and not set(types[number + 1 :]) <= _AFTER[kind]:
            yield f"{', '.join(types[number + 1 :])} after {kind}"


def missing(told: Sequence[Told], *, status: str, since: float, ended_at: float) -> Iterator[str]:
    """What is out of order, or lacks, of what was told when all was left alone.

    ``since``, 0 for always: what was told before may not have been heard.
    """
    types: list[str | None] = [str(one.event["type"]) for one in told if one.at > since]
    if since == 0:
        types.insert(0, None)
    for before, after in pairwise(types):
        if after not in _AFTER[before]:
            yield f"{after} right after {before}"
    last = FIGURES if status == "completed" else FAILED
    if ended_at > since and (not types or types[-1] != last):
        yield f"it ended, and the last that was told is {types[-1] if types else None}"


def _malformed(event: Event) -> Iterator[str]:
    kind = str(event["type"])
    if kind not in _AFTER:
        yield f"an event of the type {kind}"
    if type(event["user_id"]) is not int:
        yield f"{kind} with a user_id that is no integer"
    if kind in _LIFECYCLE and (event.get("domain") != "trainer" or not event.get("queue")):
        yield f"{kind} without a domain or a queue"
    if kind == FAILED and (event["error_kind"], event["message"]) != ("user", "cancelled"):
        yield f"{kind} of kind {event['error_kind']}: {event['message']}"
    if kind == PROGRESS and event["progress"] not in range(100):
        yield f"{kind} of {event['progress']} percent"
    for name in _FLOATS.get(kind, ()):
        if type(event[name]) is not float:
            yield f"{kind} with {name} {event[name]!r}"
