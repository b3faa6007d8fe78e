"""Waiting for a disk that was taken away: nothing of a run is put into what lies beneath."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from tasks.job import Job
from tasks.reporting import telling
from trainer_app.core.stopping import raise_if_stopped
from trainer_app.folders import has_been_replaced

_LOOK_SECONDS: Final = 0.5


def is_another(root: Path) -> bool:
    """Whether it is another folder than when the worker began, or none."""
    return has_been_replaced(root, os.environ)


def is_away(root: Path) -> bool:
    """Whether it is another one, and holds nothing: as what lies beneath a disk does.

    One that holds something serves: a disk that came back to a worker which began without it, or a
    copy on another disk.
    """
    return is_another(root) and not any(root.glob("[!.]*/[!.]*"))


def wait_for(job: Job, root: Path, say: Callable[[str], None] | None = None) -> None:
    """Return once the folder is not away, as it mostly is not.

    ``say`` tells the job's log and row what is waited for; None: nobody else tells them anything.
    Raises StopRequested where the job is to stop.
    """
    if not is_away(root):
        return
    with telling(job) if say is None else nullcontext(say) as tell:
        tell(
            f"{root} is not the folder that it was when the worker began, and is empty: waits for "
            "it (restart the worker to use what is there)"
        )
        while is_away(root):
            raise_if_stopped(job.held.should_stop)
            time.sleep(_LOOK_SECONDS)
        tell(f"{root} is back: goes on")
