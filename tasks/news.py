"""What the holder of a job tells and hears through Redis, as long as that answers.

It tells clients that it lives, and others that hold the job, or believe so, which attempt it is:
one that the database does not answer has no other way to learn that a later one has begun. It
hears the wish that the job be cancelled.

One whose lease the database does not renew has Redis keep the job for it, for as long as a lease
lasts; the next attempt begins once it has let go, or that time is over.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import redis

from trainer_app import wishes
from trainer_app.queue import attempt_key, heartbeat_key, kept_key
from trainer_app.store import lease
from trainer_app.store.claims import Claim
from trainer_app.store.database import Database
from trainer_app.wishes import TakenBack, Wish

# Anybody may have written there: what is no number, or none that counts attempts, is none.
_NUMBER: Final = """
local function number(key)
  local there = redis.pcall('GET', key)
  if type(there) == 'string' and #there < 16 and string.match(there, '^%d+$') then
    return tonumber(there)
  end
  return 0
end
local mine = tonumber(ARGV[1])
"""
# KEYS[1]: the newest attempt, KEYS[2]: the one that the job is kept for. ARGV: this one, seconds, a
# later attempt that there is not, whether to keep the job. In one go: a lower number that is
# written late, in place of a higher one, would hide it. Returns the newest, and whom the job is
# kept for.
_TELL: Final = f"""{_NUMBER}
local newest, keeper = number(KEYS[1]), number(KEYS[2])
if newest > mine and newest ~= tonumber(ARGV[3]) then return {{newest, keeper}} end
redis.call('SET', KEYS[1], mine, 'EX', ARGV[2])
if keeper > 0 and keeper < mine then return {{mine, keeper}} end
if ARGV[4] == '0' then
  redis.call('DEL', KEYS[2])
  return {{mine, 0}}
end
redis.call('SET', KEYS[2], mine, 'EX', ARGV[2])
return {{mine, mine}}
"""
# Those after KEYS[2] are deleted, unless they are a later attempt's by now.
_END: Final = f"""{_NUMBER}
if number(KEYS[2]) == mine then redis.call('DEL', KEYS[2]) end
if number(KEYS[1]) > mine then return 0 end
return redis.call('DEL', unpack(KEYS, 3))
"""
# KEYS[1]: the one that the job is kept for.
_LET_GO: Final = f"""{_NUMBER}
if number(KEYS[1]) == mine then redis.call('DEL', KEYS[1]) end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What there was to hear."""

    later_attempt: int | None  # that has begun; None: none is known
    wish: Wish | None  # that the job be cancelled
    keeps: bool  # the job for this attempt, for as long as a lease lasts from when it was asked


class News:
    """Of one claim. Each call raises RedisError or OSError where Redis does not answer."""

    def __init__(self, client: redis.Redis, claim: Claim, *, lease_seconds: float) -> None:
        self._redis = client
        self._claim = claim
        self._seconds = int(lease_seconds)
        self._refuted = 0
        self.is_alone = claim.attempt == 1  # no attempt before it has the job kept for it

    def exchange(self, *, keep: bool = False) -> Heard:
        """Tell what there is to tell, and hear; ``keep`` the job for this attempt."""
        job_id, mine = self._claim.job_id, self._claim.attempt
        told = (mine, self._seconds, self._refuted, int(keep))
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(heartbeat_key(job_id), str(int(time.time())), ex=self._seconds)
            wishes.look(pipe, job_id)
            pipe.eval(_TELL, 2, attempt_key(job_id), kept_key(job_id), *told)
            _, answer, (newest, keeper) = pipe.execute()
        self._refuted = 0
        self.is_alone = self.is_alone or not 0 < keeper < mine
        wish = wishes.read(answer)
        if wish is not None and not wish.is_for(mine):
            # Announced late: what the database was asked to end has ended.
            wishes.drop(self._redis, job_id, wish)
            wish = None
        later = newest if newest > mine else None
        return Heard(later_attempt=later, wish=wish, keeps=later is None and keeper == mine)

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
        said = [heartbeat_key(job_id), *(wishes.keys(job_id) if is_over else [])]
        keys = [attempt_key(job_id), kept_key(job_id), *said]
        self._redis.eval(_END, len(keys), *keys, self._claim.attempt)

    def let_go(self) -> None:
        """Leave the job to a later attempt, whose all the keys are by now."""
        self._redis.eval(_LET_GO, 1, kept_key(self._claim.job_id), self._claim.attempt)
