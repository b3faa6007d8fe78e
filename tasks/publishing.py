"""The last that an attempt can be stopped at: it renames what it has prepared into place."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from tasks import process
from tasks.job import Job
from tasks.roots import wait_for
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import StopRequested, raise_if_stopped
from trainer_app.errors import TrainerError
from trainer_app.folders import is_away

Published = TypeVar("Published")


def publish(
    job: Job, rename: Callable[[], Published], *, is_in_place: Callable[[], bool]
) -> Published | None:
    """Make sure of the lease, and ``rename`` one file or folder into place; what that returns.

    Whoever takes the job over meanwhile takes away what was prepared: see tasks/staging.py. Raises
    LeaseLost then, too.

    A disk that was taken away is waited for: not even a rename into what lies beneath it would be
    an end. Raises TrainerError where it was taken away just then.

    No work is interrupted after it. An interrupt that comes within, and finds what was published
    ``is_in_place``, comes too late: None then.
    """
    root = process.settings().paths.artifacts
    wait_for(job, root)
    job.renew_lease()
    job.may_be_in_place = True
    try:
        with job.held.interruptible():
            published = rename()
    except FileNotFoundError:
        job.renew_lease()
        raise_if_stopped(job.held.should_stop)  # its process is to end: see ``end_stuck``
        raise
    except StopRequested as stop:
        job.may_be_in_place = (
            stop.reason is not StopReason.FENCED and is_in_place() and not is_away(root, os.environ)
        )
        if not job.may_be_in_place:
            raise
        return None
    if is_away(root, os.environ):
        job.may_be_in_place = False  # as far as anybody can tell
        raise TrainerError(
            f"{root} was taken away while what was made was put into it: what lies beneath may "
            "hold it, to no use"
        )
    return published
