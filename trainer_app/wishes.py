"""Wishes in Redis that a job be cancelled.

A client may set one by hand, and the database knows nothing of it before a worker or housekeeping
sees it. The API sets one for speed when the database has it, and says beside it which attempt was
the last that is meant: a process that is stopped in between sets it late, when the job may have
been resumed. Both keys of its own end at one moment; a wish that ends at another, or never, is a
client's, whatever still stands beside it.
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
# KEYS: both of a job. In one go: what is left of both is to be of one moment.
_LOOK: Final = """
local said = redis.call('MGET', KEYS[1], KEYS[2])
local left, beside = redis.call('PTTL', KEYS[1]), redis.call('PTTL', KEYS[2])
local announced = left >= 0 and beside >= 0 and math.abs(left - beside) < 1000
"""
_READ: Final = f"{_LOOK} return {{said[1], said[2], announced and 1 or 0}}"
# ARGV: whom what was read is meant for. What has been set since for others stays.
_DROP: Final = f"""{_LOOK}
local up_to = ''
if announced and #said[2] < 16 and string.match(said[2], '^%d+$') then up_to = said[2] end
if said[1] == '1' and up_to == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[2]) end
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


class TakenBack(Exception):
    """Who resumes a run takes back what was asked of it before; it is not to be cancelled."""


def look(pipe: Pipeline, job_id: str) -> None:
    """Have a job's keys read: one command, whose answer ``read`` takes."""
    pipe.eval(_READ, 2, *keys(job_id))


def read(answer: Sequence[object]) -> Wish | None:
    """What the keys of a job say."""
    asked, up_to, announced = answer
    if asked != ASKED:
        return None
    if announced and isinstance(up_to, str) and _NUMBER.fullmatch(up_to):
        return Wish(up_to=int(up_to))
    return Wish()


def find(client: redis.Redis, job_id: str) -> Wish | None:
    """The wish that a job be cancelled, which stays."""
    answer: Sequence[object] = client.eval(_READ, 2, *keys(job_id))
    return read(answer)


def confirm(client: redis.Redis, job_id: str, wish: Wish) -> None:
    """Raise TakenBack where a wish that was read stands there no more.

    To be called in the transaction that heeds it, for a resume takes it in its own: which of both
    comes first decides. It waits for Redis, for as long as the client does, and on SQLite the beats
    of all jobs wait with it.
    """
    if find(client, job_id) != wish:
        raise TakenBack


def drop(client: redis.Redis, job_id: str, wish: Wish) -> None:
    """Remove a wish that was heeded or came late, but none that was set since for another attempt.

    What is set by hand is all alike, mostly without an end to tell it by: one that is set again
    between the look and this goes with the one that was read.
    """
    client.eval(_DROP, 2, *keys(job_id), "" if wish.up_to is None else str(wish.up_to))


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
    """Take a wish out of Redis, where one set by hand may have no end; of several, one gets it."""
    with client.pipeline(transaction=True) as pipe:
        look(pipe, job_id)
        pipe.delete(*keys(job_id))
        answer, _ = pipe.execute()
    return read(answer)
