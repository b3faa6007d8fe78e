"""The keys that calls come through: one of a type that it cannot be of keeps every worker from it.

As where somebody has SET a list of calls. Redis keeps such a key over every restart, and a worker
that meets it connects anew, again and again, or ends. So each worker looks at the keys of its
queues, and housekeeping at those of the queues that many share.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Final

import redis
import structlog
from kombu.transport.redis import Channel

from trainer_app import events
from trainer_app.queue import lists_of

SENTINEL: Final = "trainer:sentinel"  # gone: Redis was wiped, and every message with it
_ASIDE: Final = "trainer:aside:"  # + a key, ":" and the unix time: what stood there
_OF_CELERY: Final = ("celery.pidbox", "reply.celery.pidbox", "celeryev")  # exchanges of workers

_MOST_RENAMES: Final = 3  # of one key, by one process, within the time that is meant by "keeps"
_KEEPS_SECONDS: Final = 3_600.0
_OTHER_PROGRAM: Final = (
    "another program keeps writing to a key that calls need: give this one a Redis or a database"
    " number of its own (REDIS__URL), then start it again"
)

_RENAME: Final = """
if redis.call('TYPE', KEYS[1]).ok ~= ARGV[1] then return 0 end
if redis.call('RENAMENX', KEYS[1], KEYS[2]) == 0 then return 0 end
redis.call('DEL', KEYS[3])
return 1
"""

_log = structlog.get_logger(__name__)


class BrokerKeys:
    """Puts aside what has taken the place of a key of ours; then all that is queued is sent again.

    What takes a key's place time after time within an hour is left there: each time, all would be
    sent again.
    """

    def __init__(self) -> None:
        self._renamed: dict[str, list[float]] = {}  # when, by this process's clock
        self._told: set[str] = set()  # of which keys has been said why they stay

    def set_right(self, client: redis.Redis, queues: Collection[str]) -> None:
        """Look at the keys of ``queues``, and at the ones that all share; touch no other key.

        What the server refuses is told once, and left. Raises redis.ConnectionError,
        redis.TimeoutError, OSError.
        """
        types = dict(_types(queues))
        with client.pipeline(transaction=False) as pipe:
            for key in types:
                pipe.type(key)
            # A key that this user may not look at says nothing: that is of it alone.
            found = dict(zip(types, pipe.execute(raise_on_error=False), strict=True))
        for key, kind in found.items():
            if isinstance(kind, redis.ResponseError):
                self._tell(key, "a key may not be looked at", error=str(kind))
            elif kind in {types[key], "none"}:
                self._told.discard(key)
            elif len(self._lately_renamed(key)) >= _MOST_RENAMES:
                self._tell(key, _OTHER_PROGRAM, type=kind)
            else:
                self._rename(client, key, kind)

    def _rename(self, client: redis.Redis, key: str, kind: str) -> None:
        aside = f"{_ASIDE}{key}:{time.time():.6f}"
        try:
            # Another may have been first: what is there then is right, and stays.
            is_renamed = client.eval(_RENAME, 3, key, aside, SENTINEL, kind)
        except redis.ResponseError as error:
            self._tell(key, "a key is not what it has to be", type=kind, error=str(error))
            return
        if is_renamed:
            self._renamed[key] = [*self._lately_renamed(key), time.monotonic()]
            self._told.discard(key)
            _log.warning("a key was not what it has to be", key=key, type=kind, renamed_to=aside)

    def _lately_renamed(self, key: str) -> list[float]:
        since = time.monotonic() - _KEEPS_SECONDS
        return [at for at in self._renamed.get(key, ()) if at > since]

    def _tell(self, key: str, what: str, **more: str) -> None:
        if key not in self._told:
            self._told.add(key)
            _log.error(what, key=key, **more)


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
