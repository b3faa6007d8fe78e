"""Delete the working state of runs that nobody will take up again: checkpoints and staging."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from trainer_app import artifacts
from trainer_app.cleanup.removal import (
    finish_removals,
    is_folder,
    remove_folder,
    set_aside,
    size_of,
)
from trainer_app.cleanup.report import Item, Report
from trainer_app.core.stopping import StopRequested
from trainer_app.file_lock import at_once, locked
from trainer_app.restore import lock_of
from trainer_app.settings import Settings
from trainer_app.store import uses
from trainer_app.store.database import Database
from trainer_app.store.ids import ID_PATTERN

_STAGING: Final = re.compile(rf"({ID_PATTERN.pattern})-\d+")  # of one attempt at a tokenizer
_RESTORE: Final = "restore-"  # where the model of a run is fetched back to


def clean_runs(db: Database, settings: Settings, *, dry_run: bool) -> Report:
    """Delete what completed runs have left, and the checkpoints of failed and cancelled ones that
    ended more than CELERY__FAILURE_TTL_SEC ago; a resume of these starts over.

    Never what a queued, paused or running job has, nor folders that no row names.
    """
    root = settings.paths.runs
    failed_seconds = settings.jobs.failure_ttl_seconds
    folders = {path.name: path for path in root.iterdir()} if root.is_dir() else {}
    if not dry_run:
        for place in (
            root,
            *(settings.paths.artifacts / kind for kind in ("models", "tokenizers")),
        ):
            finish_removals(place)
    jobs = {name: job_id for name in sorted(folders) if (job_id := _job_of(name)) is not None}
    spent = uses.spent_jobs(db, list(set(jobs.values())), failed_seconds=failed_seconds)
    removed: list[Item] = []
    kept: list[Item] = []
    for name, job_id in jobs.items():
        if (reason := spent.get(job_id)) is None:
            continue
        folder = folders[name]
        if not is_folder(folder):
            kept.append(Item(name=name, bytes=0, reason="it is no folder: links are not followed"))
            continue
        item = Item(name=name, bytes=size_of(folder), reason=reason)
        if dry_run or _removed(db, job_id, folder, failed_seconds):
            removed.append(item)
    removed += _restores(db, settings, folders, dry_run=dry_run)
    return Report(dry_run=dry_run, removed=tuple(removed), kept=tuple(kept))


def _job_of(name: str) -> str | None:
    """The job whose folder has this name."""
    if ID_PATTERN.fullmatch(name):
        return name
    staging = _STAGING.fullmatch(name)
    return staging[1] if staging else None


def _removed(db: Database, job_id: str, folder: Path, failed_seconds: float) -> bool:
    """Delete the folder; False when the job goes on, or somebody else was first."""
    # A resume waits for the row meanwhile, or is seen: it never finds half a checkpoint.
    with uses.spent_job(db, job_id, failed_seconds=failed_seconds) as is_spent:
        if not is_spent or not folder.exists():
            return False
        gone = set_aside(folder)
    shutil.rmtree(gone)
    return True


def _restores(
    db: Database, settings: Settings, folders: dict[str, Path], *, dry_run: bool
) -> list[Item]:
    """Delete parts of models that a request fetched back which has ended since."""
    removed = []
    for name in sorted(folders):
        run_id = name.removeprefix(_RESTORE)
        if run_id == name or not ID_PATTERN.fullmatch(run_id) or not is_folder(folders[name]):
            continue
        if run_id in uses.models_in_use(db):
            continue
        item = Item(name=name, bytes=size_of(folders[name]), reason="nobody waits for this model")
        if not dry_run:
            lock = lock_of(artifacts.model_directory(settings, run_id))
            try:
                with locked(lock, should_stop=at_once):
                    if run_id in uses.models_in_use(db):
                        continue
                    remove_folder(folders[name])
            except StopRequested:
                continue
        removed.append(item)
    return removed
