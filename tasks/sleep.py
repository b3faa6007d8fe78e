"""Whether a process as a whole has slept: stopped, frozen, or with its machine."""

from __future__ import annotations

import time


def lasting_clock() -> float:
    """In seconds, also those that the machine sleeps: Linux's monotonic clock leaves them out."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def now_by_both_clocks() -> tuple[float, float]:
    """The time that a Held measures from: seconds, without and with those of a machine's sleep."""
    return (time.monotonic(), lasting_clock())


class Sleep:
    """Of a process that holds a lease; to be told of each sign of life."""

    def __init__(self, since: tuple[float, float], *, longest: float) -> None:
        """``since``: by both clocks; ``longest``: seconds of a sleep that ends no lease."""
        self.unsettled = False  # it slept for longer, and does not know yet who has its job
        self._awake_at = since
        self._longest = longest

    def notice(self, now: float, lasting: float) -> None:
        """Notice, in whichever thread runs first, that none did for too long."""
        awake, awake_lasting = self._awake_at
        # without a loop: the job asks between any two steps
        if max(now - awake, lasting - awake_lasting) > self._longest:
            self.unsettled = True
        self._awake_at = (now, lasting)
