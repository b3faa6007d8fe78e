"""What an attempt prepares to publish, in a folder that is named by the attempt.

The row says who may publish, but the rename comes after the row was asked, and a process can sleep
between the two. So whoever takes a job from an attempt takes away what that one has prepared, by a
rename: when it wakes, there is nothing that it could publish.

Where artifacts lie on another file system, an attempt makes a copy there first, by its name as
well. It looks once more for what it copies before it renames the copy: so whoever takes away first
that, and then the copy, leaves it neither.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from trainer_app import artifacts
from trainer_app.core.files import move_away, remove_directory
from trainer_app.settings import Settings

_COPY: Final = ".copy"


def of_tokenizer(settings: Settings, job_id: str, attempt: int) -> Path:
    """Where an attempt at a tokenizer prepares it; that of a run is its ``Workspace.staging``."""
    return settings.paths.runs / f"{job_id}-{attempt}"


def of_evaluation(settings: Settings, job_id: str, attempt: int) -> Path:
    """The folder in which an attempt at an evaluation prepares the file that keeps it.

    Where these files lie: such a one is renamed, never copied.
    """
    return copy_beside(_evaluations(settings) / "any", job_id, attempt)


def copy_beside(final: Path, job_id: str, attempt: int) -> Path:
    """Where an attempt copies what it has prepared, if that lies on another file system."""
    return final.with_name(f".{job_id}-{attempt}{_COPY}")


def take_away(settings: Settings, job_id: str, attempt: int) -> list[Path]:
    """Take what this attempt, and those before it, have prepared; what is to be deleted then.

    What cannot be moved is left: its attempt has lost its lease all the same.
    """
    taken = []
    with suppress(OSError):  # of a disk that lists nothing: leases are ended all the same
        for number, path in _prepared(settings, job_id):
            if number <= attempt:
                with suppress(OSError):
                    taken.append(move_away(path))
    return taken


def attempts(settings: Settings, job_id: str) -> list[int]:
    """The attempts that have prepared something, which is still there. Raises OSError."""
    return [number for number, _ in _prepared(settings, job_id)]


def remove_earlier(settings: Settings, job_id: str, attempt: int) -> None:
    """Remove what attempts before this one have prepared, whether they were killed or sleep."""
    for number, path in _prepared(settings, job_id):
        if number < attempt:
            remove_directory(path)
    runs = settings.paths.runs
    for taken in [
        *runs.glob(f".{job_id}-*.tmp"),
        *(runs / job_id).glob(".staging-*.tmp"),
        *(path for place in _places(settings) for path in place.glob(f"..{job_id}-*{_COPY}.*.tmp")),
    ]:
        shutil.rmtree(taken, ignore_errors=True)  # away already, but whoever took it was killed


def _prepared(settings: Settings, job_id: str) -> Iterator[tuple[int, Path]]:
    """Attempts, and what each has prepared; then its copy, once that has been dealt with."""
    runs = settings.paths.runs
    yield from _numbered([*runs.glob(f"{job_id}-*"), *(runs / job_id).glob("staging-*")])
    for place in _places(settings):
        yield from _numbered(list(place.glob(f".{job_id}-*{_COPY}")))


def _numbered(paths: Sequence[Path]) -> Iterator[tuple[int, Path]]:
    for path in paths:
        number = path.name.removesuffix(_COPY).rpartition("-")[2]
        if number.isdecimal():
            yield int(number), path


def _evaluations(settings: Settings) -> Path:
    return artifacts.evaluation_file(settings, "any", "any").parent.parent


def _places(settings: Settings) -> tuple[Path, ...]:
    """Where artifacts are published."""
    return (
        _evaluations(settings),
        artifacts.model_directory(settings, "any").parent,
        artifacts.tokenizer_directory(settings, "any").parent,
    )
