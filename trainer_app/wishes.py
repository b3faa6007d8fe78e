"""Wishes in Redis that a job be cancelled.

A client may set one by hand, and the database knows nothing of it before a worker or housekeeping
sees it. The API sets one for speed when the database has it, and says beside it which attempt was
the last that is meant: a process that is stopped in between sets it late, when the job may have
been resumed. Its own has an end; one without is a client's, whatever still stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import redis
from redis.client import Pipeline

ASKED: Final = "1"
_TTL_SECONDS: Final = 86_400
_NO_END: Final = -1  # of a key, as Redis says it
# KEYS: both of a job, ARGV: what was read. What has been set since stays.
_DROP: Final = """
if redis.call('TTL', KEYS[1]) >= 0 and redis.pcall('GET', KEYS[2]) == ARGV[1] then
  redis.call('DEL', KEYS[1], KEYS[2])
end
"""
_NUMBER: Final = re.compile("[0-9]{1,15}")  # anything else is none: anybody may have written it


def cancelled_key(job_id: str) -> str:
    """The Redis key that asks for cancellation when it is set to "1"."""
    return f"runs:{job_id}:cancelled"


def up_to_key(job_id: str) -> str:
    """The Redis key that holds the last attempt that is meant; what is set by hand has none."""
    return f"runs:{job_id}:cancelled:attempt"


def keys(job_id: str) -> tuple[str, str]:
    """Both: the wish, and whom it is meant for."""
    return cancelled_key(job_id), up_to_key(job_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """That a job be cancelled."""

    up_to: int | None = None  # the last attempt that is meant; None: set by hand, any

    def is_for(self, attempt: int) -> bool:
        """Whether this attempt is meant, and not one before it, which has ended since."""
        return self.up_to is None or attempt <= self.up_to


def look(pipe: Pipeline, job_id: str) -> None:
    """Have a job's keys read: two commands, whose answers ``read`` takes."""
    pipe.mget(keys(job_id))
    pipe.ttl(cancelled_key(job_id))


def read(values: Sequence[object], ttl: object) -> Wish | None:
    """What the keys of a job say."""
    asked, up_to = values
    if asked != ASKED:
        return None
    if ttl != _NO_END and isinstance(up_to, str) and _NUMBER.fullmatch(up_to):
        return Wish(up_to=int(up_to))
    return Wish()


def drop(client: redis.Redis, job_id: str, wish: Wish) -> None:
    """Remove an announced wish that came late, but none that was set since it was read."""
    client.eval(_DROP, 2, *keys(job_id), str(wish.up_to))


def put(client: redis.Redis, job_id: str, wish: Wish) -> None:
    """Set a job's keys, all or none."""
    with client.pipeline(transaction=True) as pipe:
        pipe.set(cancelled_key(job_id), ASKED, ex=_TTL_SECONDS)
        if wish.up_to is None:
            pipe.delete(up_to_key(job_id))
        else:
            pipe.set(up_to_key(job_id), str(wish.up_to), ex=_TTL_SECONDS)
        pipe.execute()


def take(client: redis.Redis, job_id: str) -> Wish | None:
    """Take a wish out of Redis, where one set by hand has no end; of several, one gets it."""
    with client.pipeline(transaction=True) as pipe:
        look(pipe, job_id)
        pipe.delete(*keys(job_id))
        values, ttl, _ = pipe.execute()
    return read(values, ttl)
