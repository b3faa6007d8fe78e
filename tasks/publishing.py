"""The last that an attempt can be stopped at: it renames what it has prepared into place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tasks.job import Job
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import StopRequested, raise_if_stopped

Published = TypeVar("Published")


def publish(
    job: Job, rename: Callable[[], Published], *, is_in_place: Callable[[], bool]
) -> Published | None:
    """Make sure of the lease, and ``rename`` one file or folder into place; what that returns.

    Whoever takes the job over meanwhile takes away what was prepared: see tasks/staging.py. Raises
    LeaseLost then, too.

    No work is interrupted after it. An interrupt that comes within, and finds what was published
    ``is_in_place``, comes too late: None then.
    """
    job.renew_lease()
    job.may_be_in_place = True
    try:
        with job.held.interruptible():
            return rename()
    except FileNotFoundError:
        job.renew_lease()
        raise_if_stopped(job.held.should_stop)  # its process is to end: see ``end_stuck``
        raise
    except StopRequested as stop:
        job.may_be_in_place = stop.reason is not StopReason.FENCED and is_in_place()
        if not job.may_be_in_place:
            raise
        return None
