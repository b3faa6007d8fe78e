"""How a request to stop travels out of whatever the engine does at that moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from trainer_app.core.observer import StopReason

ShouldStop: TypeAlias = Callable[[], StopReason | None]


class StopRequested(Exception):
    """Work was left unfinished because somebody asked for it; not an error."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


def raise_if_stopped(should_stop: ShouldStop) -> None:
    """Raise StopRequested when a stop is asked for. Cheap: called between units of work."""
    reason = should_stop()
    if reason is not None:
        raise StopRequested(reason)


def never() -> StopReason | None:
    """A should_stop that never asks for it."""
    return None


def heed(*, cancelled: bool) -> None:
    """Raise StopRequested of a cancellation, if there is one."""
    if cancelled:
        raise StopRequested(StopReason.CANCEL)
