"""Whether the holder of a job can still learn whose the job is.

The database says it, and Redis where that is away: see tasks/news.py. Where neither answers, and
the lease is over by this process's own clock, another attempt may have begun that nobody can tell
it of. It waits from a little before that on: what is under way has to end first, which may take as
long as lately.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_STEP_SHARE: Final = 1 / 6  # of a lease, before its end: the least time for a step to end
_KEPT_SECONDS: Final = 600.0  # a step that took longer than those after it is thought of


class Contact:
    """Of one claim; told of each answer, and of each that did not come."""

    def __init__(self, *, since: float, lease_seconds: float, say: Callable[[str], object]) -> None:
        """``since``: just before the claim, by the clock that all times here are of."""
        self.beaten_at = since  # what the database has confirmed
        self.database_answers = True
        self.redis_answers = True
        self._lease_seconds = lease_seconds
        self._say = say
        self._lost_at: float | None = None
        self.step_seconds = _STEP_SHARE * lease_seconds  # what one may take
        self._longest_at = since

    @property
    def is_lost(self) -> bool:
        """Whether another attempt may begin before a step has ended, and nobody could tell."""
        return self._lost_at is not None

    def may_be_over(self, now: float) -> bool:
        """Whether the lease is, as far as this process knows."""
        return now - self.beaten_at > self._lease_seconds

    def stepped(self, now: float, seconds: float) -> None:
        """A step has taken so long, or whatever is not left before it has ended."""
        if seconds < self.step_seconds and now - self._longest_at < _KEPT_SECONDS:
            return
        lease = self._lease_seconds
        self.step_seconds = min(max(seconds, _STEP_SHARE * lease), lease)
        self._longest_at = now

    def look(self, now: float, *, silent: bool) -> None:
        """Draw the conclusion; ``silent``: the job's log may be another attempt's by now."""
        ends_soon = self.may_be_over(now + self.step_seconds)
        lost = ends_soon and not (self.database_answers or self.redis_answers)
        if lost and self._lost_at is None:
            self._lost_at = now
            message = "neither the database nor Redis answers, and the lease ends: the work waits"
        elif not lost and self._lost_at is not None:
            message = f"an answer came: the work goes on after {now - self._lost_at:.0f} s"
            self._lost_at = None
        else:
            return
        if not silent:
            self._say(message)
