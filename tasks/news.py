"""What the holder of a job tells and hears through Redis, as long as that answers.

It tells clients that it lives, and others that hold the job, or believe so, which attempt it is:
one that the database does not answer has no other way to learn that a later one has begun. It
hears the wish that the job be cancelled.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import redis

from trainer_app import wishes
from trainer_app.queue import attempt_key, heartbeat_key
from trainer_app.store import lease
from trainer_app.store.claims import Claim
from trainer_app.store.database import Database
from trainer_app.wishes import TakenBack, Wish

# KEYS[1]: the newest attempt, ARGV[1]: this one. Anybody may have written there: what is no number,
# or none that counts attempts, is none.
_LOOK: Final = """
local there = redis.pcall('GET', KEYS[1])
local newest = 0
if type(there) == 'string' and #there < 16 and string.match(there, '^%d+$') then
  newest = tonumber(there)
end
local mine = tonumber(ARGV[1])
"""
# ARGV[2]: seconds, ARGV[3]: a later attempt that there is not. In one go: a lower number that is
# written late, in place of a higher one, would hide it.
_TELL: Final = f"""{_LOOK}
if newest > mine and newest ~= tonumber(ARGV[3]) then return newest end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return mine
"""
# KEYS[2] and those after it are deleted, unless they are a later attempt's by now.
_END: Final = f"""{_LOOK}
if newest > mine then return 0 end
return redis.call('DEL', unpack(KEYS, 2))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What there was to hear."""

    later_attempt: int | None  # that has begun; None: none is known
    wish: Wish | None  # that the job be cancelled


class News:
    """Of one claim. Each call raises RedisError or OSError where Redis does not answer."""

    def __init__(self, client: redis.Redis, claim: Claim, *, lease_seconds: float) -> None:
        self._redis = client
        self._claim = claim
        self._seconds = int(lease_seconds)
        self._refuted = 0

    def exchange(self) -> Heard:
        """Tell what there is to tell, and hear."""
        job_id, mine = self._claim.job_id, self._claim.attempt
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(heartbeat_key(job_id), str(int(time.time())), ex=self._seconds)
            wishes.look(pipe, job_id)
            pipe.eval(_TELL, 1, attempt_key(job_id), mine, self._seconds, self._refuted)
            _, answer, newest = pipe.execute()
        self._refuted = 0
        wish = wishes.read(answer)
        if wish is not None and not wish.is_for(mine):
            # Announced late: what the database was asked to end has ended.
            wishes.drop(self._redis, job_id, wish)
            wish = None
        return Heard(later_attempt=newest if newest > mine else None, wish=wish)

    def heed(self, database: Database, wish: Wish) -> bool:
        """Have the database cancel this attempt; False where that was taken back meanwhile.

        Raises LeaseLost and Unavailable as well.
        """
        try:
            lease.cancel(
                database,
                self._claim,
                confirm=lambda: wishes.confirm(self._redis, self._claim.job_id, wish),
            )
        except TakenBack:
            return False
        return True

    def refute(self, later_attempt: int) -> None:
        """There is no such attempt, says the database: what Redis has is somebody's mistake."""
        self._refuted = later_attempt

    def end(self, *, is_over: bool) -> None:
        """Take back the sign of life and, where the job is over for good, the wish to cancel it.

        The number of the attempt is left to expire: whoever has not seen it yet is to see it.
        """
        job_id = self._claim.job_id
        # The wish to cancel a job that is not over is the next attempt's to hear.
        keys = [heartbeat_key(job_id), *(wishes.keys(job_id) if is_over else [])]
        self._redis.eval(_END, 1 + len(keys), attempt_key(job_id), *keys, self._claim.attempt)
