"""Chats in Redis: what was said in each, until an hour after its last turn.

A session is a hash: what it is under an empty name, each turn under the id of its request, so that
a turn is written as a whole, whatever else happens to the session, and only while there is one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final

import redis

from trainer_app.errors import DataNotFound, Unavailable
from trainer_app.store import ids

SESSION_SECONDS: Final = 3_600  # since the last turn
_KEY: Final = "trainer:chat:"  # + session id

# hset or hsetnx, but never into a session that was deleted: a late answer brings none back
_PUT: Final = """
if redis.call("EXISTS", KEYS[1]) == 0 then return 0 end
redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3])
redis.call("EXPIRE", KEYS[1], ARGV[4])
return 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A message and its answer."""

    request_id: str
    message: str
    response: str | None = None  # None: not answered, or never will be


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSession:
    """A chat with one run's model."""

    session_id: str
    run_id: str
    created_at: float  # unix seconds
    turns: tuple[Turn, ...]  # oldest first


class ChatSessions:
    """The chats; every method raises Unavailable when Redis is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def begin(self, run_id: str) -> ChatSession:
        """A new session without turns."""
        session_id = ids.new_id(ids.SESSION)
        head = json.dumps({"run_id": run_id, "created_at": time.time()})
        with _redis_named(), self._redis.pipeline() as pipe:
            pipe.hset(_KEY + session_id, "", head)
            pipe.expire(_KEY + session_id, SESSION_SECONDS)
            pipe.execute()
        return self.get(run_id, session_id)

    def get(self, run_id: str, session_id: str) -> ChatSession:
        """A session of this run; raises DataNotFound, also for a session of another."""
        with _redis_named():
            found = self._redis.hgetall(_KEY + session_id)
        values = {str(name): str(text) for name, text in found.items()}
        head = json.loads(values.pop("", "{}"))
        if head.get("run_id") != run_id:
            raise DataNotFound(f"{session_id}: {run_id} has no such chat, or it is over")
        turns = (Turn(**json.loads(values[name])) for name in sorted(values))
        return ChatSession(session_id=session_id, **head, turns=tuple(turns))

    def announce(self, session_id: str, turn: Turn) -> bool:
        """Show a turn that waits for its answer; False: the session is gone."""
        return self._put("HSETNX", session_id, turn)

    def put(self, session_id: str, turn: Turn) -> bool:
        """Write a turn down with its answer; False: the session is gone, and stays gone."""
        return self._put("HSET", session_id, turn)

    def forget(self, session_id: str) -> None:
        """Delete a session."""
        with _redis_named():
            self._redis.delete(_KEY + session_id)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def _put(self, command: str, session_id: str, turn: Turn) -> bool:
        text = json.dumps(asdict(turn))
        key = _KEY + session_id
        with _redis_named():
            return bool(
                self._redis.eval(_PUT, 1, key, command, turn.request_id, text, SESSION_SECONDS)
            )


@contextmanager
def _redis_named() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise Unavailable(f"Redis does not answer: {type(error).__name__}") from error
