"""Waiting for a disk that is away: nothing of a job is put into what lies beneath."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from tasks import process
from tasks.job import Job, Left
from tasks.reporting import telling
from trainer_app.core.stopping import raise_if_stopped
from trainer_app.folders import is_away, waits_for
from trainer_app.store import wakeups
from trainer_app.store.database import Database
from trainer_app.store.tables import JobKind

_LOOK_SECONDS: Final = 0.5
LEAVE_FILES: Final = frozenset({JobKind.TRAIN, JobKind.TOKENIZER, JobKind.EVALUATE})
_AGAIN_SECONDS: Final = 5.0  # until a worker looks once more for a job that was put off


def wait_for(job: Job, root: Path, say: Callable[[str], None] | None = None) -> None:
    """Return once the folder is not away, as it mostly is not.

    ``say`` tells the job's log and row what is waited for; None: nobody else tells them anything.
    Raises StopRequested where the job is to stop.
    """
    if not is_away(root, os.environ):
        return
    with telling(job) if say is None else nullcontext(say) as tell:
        tell(waits_for(root))
        since = time.monotonic()
        while is_away(root, os.environ):
            raise_if_stopped(job.held.should_stop)
            time.sleep(_LOOK_SECONDS)
            since, before = time.monotonic(), since
            job.held.excuse(since - before)
        tell(f"{root} serves again: goes on")


def away() -> Path | None:
    """One of the folders that jobs leave files in, where it is away."""
    paths = process.settings().paths
    roots = (paths.artifacts, paths.runs)
    return next((root for root in roots if is_away(root, os.environ)), None)


def leave_until_back(db: Database, job_id: str) -> Left | None:
    """Put off a queued job that leaves files, while a folder that it needs is away; why, if so.

    To claim it would be to keep it from the workers of other hosts, which may have the disk, and
    to keep this worker from what needs none.
    """
    root = away()
    queued = None if root is None else wakeups.queued_spec(db, job_id)
    if root is None or queued is None or queued[0] not in LEAVE_FILES:
        return None
    reason = waits_for(root)
    is_news = wakeups.put_off(db, job_id, message=reason, delay_seconds=_AGAIN_SECONDS)
    return Left(reason, is_news=is_news)
