"""Have queued jobs say that the worker which they wait for is not there.

One that is pinned to a worker's own queue waits for that one alone: for ever, where its machine has
got another name, its GPU is gone, or the names of all queues were changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from tasks import process
from trainer_app.errors import Unavailable
from trainer_app.store import waits

MISSING_SECONDS: Final = 120.0  # far more than a worker takes to start, or to be started again
_LOOK_SECONDS: Final = 10.0

_log = structlog.get_logger(__name__)


class Unserved:
    """Knows since when no worker takes from which queue."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}  # by queue
        self._look_at = float("-inf")
        self.redis_answers = True  # as far as is known: one that hangs is not waited for once more

    def one_pass(self) -> None:
        """Look, if it is time to. Raises Unavailable where the database is away."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        served = _served() if self.redis_answers else None
        if served is None:
            self._since.clear()  # nobody can tell of himself: it is no news that nobody does
            return
        missing = waits.queues(process.database()) - served
        self._since = {queue: self._since.get(queue, now) for queue in missing}
        waits.take_back(process.database(), served)
        for queue, since in self._since.items():
            if now - since >= MISSING_SECONDS:
                for job_id in waits.tell(process.database(), queue):
                    _log.warning("no worker takes from its queue", job_id=job_id, queue=queue)


def _served() -> set[str] | None:
    """The queues that live workers take from; None while Redis is away."""
    try:
        return {queue for worker in process.queue().workers() for queue in worker.queues}
    except Unavailable:
        return None
