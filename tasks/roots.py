"""Waiting for a disk that is away: nothing of a job is put into what lies beneath."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from tasks.job import Job
from tasks.reporting import telling
from trainer_app.core.stopping import raise_if_stopped
from trainer_app.folders import MARK, is_away

_LOOK_SECONDS: Final = 0.5


def wait_for(job: Job, root: Path, say: Callable[[str], None] | None = None) -> None:
    """Return once the folder is not away, as it mostly is not.

    ``say`` tells the job's log and row what is waited for; None: nobody else tells them anything.
    Raises StopRequested where the job is to stop.
    """
    if not is_away(root, os.environ):
        return
    with telling(job) if say is None else nullcontext(say) as tell:
        tell(_waits_for(root))
        while is_away(root, os.environ):
            raise_if_stopped(job.held.should_stop)
            time.sleep(_LOOK_SECONDS)
        tell(f"{root} serves again: goes on")


def _waits_for(root: Path) -> str:
    return (
        f"{root} is empty and has no {MARK}, as what lies beneath a disk that is not mounted: "
        "waits for it (mount it; where the empty folder is to serve from now on: "
        f"touch {shlex.quote(str(root / MARK))})"
    )
