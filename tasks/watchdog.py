"""What a worker's parent sees of its children's jobs: those that died, and those that froze.

A child ends by itself when its job does not stop (tasks/held.py), as long as its lease thread
runs. One that is stopped by a signal, or that hangs with the interpreter's lock held, cannot.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import structlog

from trainer_app.errors import Unavailable
from trainer_app.pids import is_stopped, lives
from trainer_app.store import lease
from trainer_app.store.database import Database

# With the seconds that it takes to notice the stop and the death: gone within 35 s of a request.
KILL_SECONDS: Final = 27.0  # for a child to leave a job that it should not be at

_log = structlog.get_logger(__name__)


class Watchdog:
    """Watches over the children of one worker; to be called about once a second."""

    def __init__(
        self,
        database: Database,
        hostname: str,
        *,
        claim_seconds: float = 180.0,
        kill: Callable[[int, int], object] = os.kill,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``claim_seconds``: for a child to claim its job, of a database that is locked, too."""
        self._database = database
        self._hostname = hostname
        self._kill = kill
        self._clock = clock
        self._claim_seconds = claim_seconds
        self._seen_at: dict[tuple[int, str], float] = {}  # each child at its job, first
        self._claimed: set[tuple[int, str]] = set()  # those that had it then
        self._overdue: dict[tuple[int, str], float] = {}  # pid and job -> since when

    def look(self, busy: Callable[[], Mapping[int, str]], *, draining: bool = False) -> None:
        """Kill the children that do not leave their job, end the leases of dead ones.

        ``busy`` says what each busy child works on, by pid; it is asked again before one is
        killed. Raises Unavailable once it has done what can be done without the database: no child
        gets more time because that is away.
        """
        children = set(busy().items())
        now = self._clock()
        self._seen_at = {child: self._seen_at.get(child, now) for child in children}
        self._claimed &= children
        try:
            owned = lease.owned(self._database, self._hostname)
            self._claimed |= children & {(one.pid, one.job_id) for one in owned}
            claiming = self._claiming(children)
        except Unavailable:
            self._end_overdue(children if draining else children & self._overdue.keys(), busy)
            raise
        mine = {
            (one.pid, one.job_id)
            for one in owned
            # Whoever is stopped in the middle of a write keeps all others from writing to SQLite.
            if not (one.cancel_requested or (one.is_over and is_stopped(one.pid)))
        }
        self._end_overdue(children if draining else children - mine - claiming, busy)
        for one in owned:
            if not lives(one.pid):
                # Also one of a worker of this name before this one: a resume takes seconds.
                lease.expire(
                    self._database, one.job_id, owner_prefix=one.owner, attempt=one.attempt
                )

    def _claiming(self, children: set[tuple[int, str]]) -> set[tuple[int, str]]:
        """Those that may be about to have their jobs, which wait, as where SQLite is locked.

        Also while they import what the job needs.
        """
        now = self._clock()
        waiting = {
            child
            for child in children - self._claimed
            if now - self._seen_at[child] <= self._claim_seconds and not is_stopped(child[0])
        }
        if not waiting:
            return waiting
        queued = lease.queued(self._database, [job_id for _, job_id in waiting])
        return {(pid, job_id) for pid, job_id in waiting if job_id in queued}

    def _end_overdue(
        self, children: set[tuple[int, str]], busy: Callable[[], Mapping[int, str]]
    ) -> None:
        """Kill those that should not be at their job for too long."""
        now = self._clock()
        self._overdue = {child: self._overdue.get(child, now) for child in children}
        for (pid, job_id), since in self._overdue.items():
            # It may have left while the database was asked, which takes up to a minute.
            if now - since > KILL_SECONDS and busy().get(pid) == job_id:
                _log.error("a child does not leave its job: it is killed", job_id=job_id, pid=pid)
                with suppress(ProcessLookupError):  # its pid may be gone before its request is
                    self._kill(pid, signal.SIGKILL)
