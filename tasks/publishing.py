"""The last that an attempt can be stopped at: it renames what it has prepared into place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from tasks import process
from tasks.job import Job
from tasks.roots import wait_for
from trainer_app.core.files import move_away
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import StopRequested, raise_if_stopped
from trainer_app.errors import TrainerError
from trainer_app.folders import mark_of

Published = TypeVar("Published")


def publish(
    job: Job, rename: Callable[[], Published], place: Path, *, is_in_place: Callable[[], bool]
) -> Published | None:
    """Make sure of the lease, and ``rename`` one file or folder into ``place``; what that returns.

    Whoever takes the job over meanwhile takes away what was prepared: see tasks/staging.py. Raises
    LeaseLost then, too.

    A disk that was taken away is waited for: not even a rename into what lies beneath it would be
    an end. Raises TrainerError where it was taken away just then.

    No work is interrupted after it. An interrupt that comes within, and finds what was published
    ``is_in_place``, comes too late: None then.
    """
    root = process.settings().paths.artifacts
    wait_for(job, root)
    mark = mark_of(root)
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
        job.may_be_in_place = stop.reason is not StopReason.FENCED and is_in_place()
        if not job.may_be_in_place:
            raise
        return None
    if mark not in {None, mark_of(root)}:
        job.may_be_in_place = False  # as far as anybody can tell
        if is_in_place() and mark_of(root) != mark:
            # The folder beneath would look like one that serves, to this job's next attempt and to
            # whoever else waits.
            _remove(place, root)
        raise TrainerError(f"{root} was taken away while what was made was put into it")
    return published


def _remove(place: Path, root: Path) -> None:
    """Remove a file or a folder, and what it leaves empty below ``root``, as far as that can be."""
    with suppress(OSError):
        if place.is_dir():
            shutil.rmtree(move_away(place))
        else:
            place.unlink()
        for folder in takewhile(root.__ne__, place.parents):
            folder.rmdir()
