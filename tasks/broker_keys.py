"""The keys that calls come through: one of a type that it cannot be of keeps every worker from it.

As where somebody has SET a list of calls. Redis keeps such a key over every restart, and a worker
that meets it connects anew, again and again, or ends. So each worker looks at the keys of its
queues, and housekeeping at those of the queues that many share.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import redis
import structlog
from kombu.transport.redis import Channel

from trainer_app import events
from trainer_app.queue import lists_of

SENTINEL: Final = "trainer:sentinel"  # gone: Redis was wiped, and every message with it
_ASIDE: Final = "trainer:aside:"  # + a key: what stood there
_OF_CELERY: Final = ("celery.pidbox", "reply.celery.pidbox", "celeryev")  # exchanges of workers

_log = structlog.get_logger(__name__)


def set_right(client: redis.Redis, queues: Collection[str]) -> None:
    """Put aside what has taken the place of a key of ours; then all that is queued is sent again.

    ``queues``: those whose keys are looked at, beside the ones that all share. No other key is
    touched. Raises redis.RedisError, OSError.
    """
    types = dict(_types(queues))
    with client.pipeline(transaction=False) as pipe:
        for key in types:
            pipe.type(key)
        found = dict(zip(types, pipe.execute(), strict=True))
    wrong = {key: kind for key, kind in found.items() if kind not in {types[key], "none"}}
    for key, kind in wrong.items():
        aside = f"{_ASIDE}{key}"
        try:
            with client.pipeline(transaction=True) as pipe:
                pipe.rename(key, aside)
                pipe.delete(SENTINEL)
                pipe.execute()
        except redis.ResponseError as error:  # another was first, or this user may not rename
            _log.warning("a key is not what it has to be", key=key, type=kind, error=str(error))
        else:
            _log.warning("a key was not what it has to be", key=key, type=kind, renamed_to=aside)


def _types(queues: Collection[str]) -> Iterable[tuple[str, str]]:
    """The keys, and of what type each is where there is one."""
    yield SENTINEL, "string"  # first: with each of the others it is deleted
    for queue in queues:
        yield from ((key, "list") for key in lists_of(queue))
    for exchange in (*queues, *_OF_CELERY):
        yield Channel.keyprefix_queue % exchange, "set"
        yield f"_kombu.binding_permanent.{exchange}", "set"
    yield "_kombu.binding_deadlines", "zset"
    yield Channel.unacked_key, "hash"
    yield Channel.unacked_index_key, "zset"
    yield Channel.unacked_mutex_key, "string"
    yield events.STREAM, "stream"
