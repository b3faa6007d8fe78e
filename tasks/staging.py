"""What an attempt prepares to publish, in a folder that is named by the attempt.

The row says who may publish, but the rename comes after the row was asked, and a process can sleep
between the two. So whoever takes a job from an attempt takes away what that one has prepared, by a
rename: when it wakes, there is nothing that it could publish.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainer_app.core.files import move_away, remove_directory
from trainer_app.settings import Settings


def of_tokenizer(settings: Settings, job_id: str, attempt: int) -> Path:
    """Where an attempt at a tokenizer prepares it; that of a run is its ``Workspace.staging``."""
    return settings.paths.runs / f"{job_id}-{attempt}"


def take_away(settings: Settings, job_id: str, attempt: int) -> list[Path]:
    """Take what this attempt, and those before it, have prepared; what is to be deleted then.

    What cannot be moved is left: its attempt has lost its lease all the same.
    """
    taken = []
    with suppress(OSError):  # of a disk that lists nothing: leases are ended all the same
        for number, path in _prepared(settings, job_id):
            if number <= attempt:
                taken.append(move_away(path))
    return taken


def remove_earlier(settings: Settings, job_id: str, attempt: int) -> None:
    """Remove what attempts before this one have prepared, whether they were killed or sleep."""
    for number, path in _prepared(settings, job_id):
        if number < attempt:
            remove_directory(path)
    runs = settings.paths.runs
    for taken in [*runs.glob(f".{job_id}-*.tmp"), *(runs / job_id).glob(".staging-*.tmp")]:
        shutil.rmtree(taken, ignore_errors=True)  # away already, but whoever took it was killed


def _prepared(settings: Settings, job_id: str) -> Iterator[tuple[int, Path]]:
    """Attempts, and what each has prepared."""
    runs = settings.paths.runs
    for path in [*runs.glob(f"{job_id}-*"), *(runs / job_id).glob("staging-*")]:
        number = path.name.rpartition("-")[2]
        if number.isdecimal():
            yield int(number), path
