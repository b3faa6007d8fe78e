"""Cancellations that a client sets in Redis itself, of runs that no worker has yet.

A running one's are heard by the thread that keeps its lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import redis

from tasks import process
from trainer_app.errors import AlreadyFinished, NotFound, Unavailable
from trainer_app.queue import CANCELLED_TTL_SECONDS, cancelled_key
from trainer_app.store import lease, runs
from trainer_app.store.tables import JobKind

_ASKED: Final = "1"
_AT_ONCE: Final = 1_000  # keys in one look at Redis


def heed(run_ids: Sequence[str]) -> None:
    """Cancel those of these runs whose key asks for it: who is queued never starts."""
    client = process.redis_client()
    try:
        for start in range(0, len(run_ids), _AT_ONCE):
            some = run_ids[start : start + _AT_ONCE]
            asked = client.mget([cancelled_key(run_id) for run_id in some])
            for run_id, value in zip(some, asked, strict=True):
                if value == _ASKED:
                    _cancel(run_id)
    except (redis.RedisError, OSError):
        return  # heard at the next look, or by the thread that keeps the run's lease


def heed_queued() -> None:
    """Cancel the queued runs whose key asks for it."""
    heed(runs.queued(process.database()))


def _cancel(run_id: str) -> None:
    if not _take(run_id):
        return  # another housekeeper has, and whoever resumes the run since is not to be cancelled
    try:
        run = runs.get(process.database(), run_id)
        events = process.job_events(
            JobKind.TRAIN, job_id=run_id, user_id=run.user_id, queue_name=run.queue
        )
        lease.request_cancel(
            process.database(), run_id, on_cancelled=lambda: events.failed("user", "cancelled")
        )
    except NotFound:
        _put_back(run_id)  # another kind of job: its lease's thread looks
    except AlreadyFinished:
        pass
    except Unavailable:
        _put_back(run_id)
        raise


def _take(run_id: str) -> bool:
    """Take the wish out of Redis, where a client's own has no end; whether it was there."""
    with process.redis_client().pipeline(transaction=True) as pipe:
        pipe.get(cancelled_key(run_id))
        pipe.delete(cancelled_key(run_id))
        return bool(pipe.execute()[0] == _ASKED)


def _put_back(run_id: str) -> None:
    process.redis_client().set(cancelled_key(run_id), _ASKED, ex=CANCELLED_TTL_SECONDS)
