"""Waiting for a database that is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from trainer_app.errors import Unavailable

_PATIENCE_SECONDS: Final = 3_600.0  # when a job ends
_LONGEST_PAUSE_SECONDS: Final = 10.0

Written = TypeVar("Written")


def insist(change: Callable[[], Written], *, patience_seconds: float | None = None) -> Written:
    """Make a change, however long the database is away; None: as at the end, to keep the work."""
    patience = _PATIENCE_SECONDS if patience_seconds is None else patience_seconds
    give_up_at = time.monotonic() + patience
    pause = 0.1
    while True:
        try:
            return change()
        except Unavailable:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
