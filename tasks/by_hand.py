"""Cancellations that are set in Redis, of runs that no worker has yet.

A running one's are heard by the thread that keeps its lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import redis

from tasks import process
from trainer_app import wishes
from trainer_app.errors import AlreadyFinished, NotFound
from trainer_app.store import lease, runs
from trainer_app.store.tables import JobKind, Status
from trainer_app.wishes import TakenBack

_AT_ONCE: Final = 1_000  # keys in one look at Redis


def heed(run_ids: Sequence[str]) -> None:
    """Cancel those of these runs whose key asks for it: who is queued never starts."""
    client = process.redis_client()
    try:
        for start in range(0, len(run_ids), _AT_ONCE):
            some = run_ids[start : start + _AT_ONCE]
            asked = client.mget([wishes.cancelled_key(run_id) for run_id in some])
            for run_id, value in zip(some, asked, strict=True):
                if value == wishes.ASKED:
                    _cancel(run_id)
    except (redis.RedisError, OSError):
        return  # heard at the next look, or by the thread that keeps the run's lease


def heed_queued() -> None:
    """Cancel the queued runs whose key asks for it."""
    heed(runs.queued(process.database()))


def _cancel(run_id: str) -> None:
    """Heed the wish, and only then take it out of Redis: whoever is killed leaves it to others."""
    client = process.redis_client()
    wish = wishes.find(client, run_id)
    if wish is None:
        return  # another has heeded it

    try:
        run = runs.get(process.database(), run_id)
        running = run.status is Status.RUNNING
        # One that was announced late is left out: what the database was asked to end has ended.
        if wish.is_for(run.attempt if running else run.attempt + 1):
            events = process.job_events(
                JobKind.TRAIN, job_id=run_id, user_id=run.user_id, queue_name=run.queue
            )
            lease.request_cancel(
                process.database(),
                run_id,
                confirm=lambda: wishes.confirm(client, run_id, wish),
                on_cancelled=lambda: events.failed("user", "cancelled"),
            )
    except NotFound:
        return  # of another kind of job its lease's thread looks
    except TakenBack:
        return  # the run goes on, and what may stand there now is another's: for the next look
    except AlreadyFinished:
        pass
    wishes.drop(client, run_id, wish)
