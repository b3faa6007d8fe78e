"""Trying again: exponential back-off with jitter, for as long as it may still help."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trainer_app.core.stopping import ShouldStop, raise_if_stopped
from trainer_app.errors import DataBankUnavailable, DataNotFound

_FIRST_PAUSE: Final = 0.5  # seconds; doubles each time
_LONGEST_PAUSE: Final = 60.0
_LOOK_SECONDS: Final = 0.25
_MOST_WRONG: Final = 3  # answers that are whole and still not what they must be


class TryAgain(DataBankUnavailable):
    """This try has failed, and another may not."""

    def __init__(
        self, message: str, *, pause_seconds: float | None = None, wrong: bool = False
    ) -> None:
        """``pause_seconds``: what the server asks for. ``wrong``: it works, but answers badly."""
        super().__init__(message)
        self.pause_seconds = pause_seconds
        self.wrong = wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to go on, and by which clock."""

    seconds: float  # since there was progress
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    jitter: Callable[[float, float], float] = random.uniform


class Tries:
    """The tries of one transfer."""

    def __init__(self, patience: Patience, *, should_stop: ShouldStop) -> None:
        self._patience = patience
        self._should_stop = should_stop
        self._wrong = 0
        self.progressed()

    def progressed(self) -> None:
        """The transfer got somewhere: the next failure counts as the first."""
        self._failures = 0
        self._give_up_at = self._patience.clock() + self._patience.seconds

    def failed(self, error: TryAgain | DataNotFound) -> None:
        """Wait for the next try. Raises the error when there is to be none, and StopRequested.

        A file that is not there counts as a wrong answer: it may be about to come.
        """
        wrong, asked = True, None
        if isinstance(error, TryAgain):
            wrong, asked = error.wrong, error.pause_seconds
        self._wrong += wrong
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._failures)
        # Half of it at random: workers that failed together do not come back together.
        pause = self._patience.jitter(pause / 2, pause)
        pause = max(pause, min(_LONGEST_PAUSE, asked or 0.0))
        self._failures += 1
        again_at = self._patience.clock() + pause
        if self._wrong >= _MOST_WRONG or again_at > self._give_up_at:
            raise error
        while (left := again_at - self._patience.clock()) > 0:
            raise_if_stopped(self._should_stop)
            self._patience.sleep(min(left, _LOOK_SECONDS))
