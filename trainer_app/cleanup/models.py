"""Delete the weights of models that lie in the data bank; what describes them stays.

A model that is asked for later is fetched back.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from trainer_app import artifacts
from trainer_app.cleanup.removal import is_file, is_folder
from trainer_app.cleanup.report import Item, Report
from trainer_app.core.stopping import StopRequested
from trainer_app.databank.client import DataBank
from trainer_app.errors import DataBankUnavailable, DataNotFound
from trainer_app.file_lock import at_once, locked
from trainer_app.restore import lock_of
from trainer_app.settings import Settings
from trainer_app.store import uploads, uses
from trainer_app.store.database import Database
from trainer_app.store.uploads import Uploaded

WEIGHTS: Final = ".safetensors"  # what their files' names end with


def clean_models(db: Database, settings: Settings, bank: DataBank, *, dry_run: bool) -> Report:
    """Delete weights whose upload and last use are longer ago than the grace period.

    Never those that an unfinished job reads. Unless APP__CLEANUP__VERIFY_UPLOAD is off, the data
    bank must say now that it has the same bytes.
    """
    removed: list[Item] = []
    kept: list[Item] = []
    for model in uploads.uploaded(db):
        folder = artifacts.model_directory(settings, model.run_id)
        weights = sorted(folder.glob(f"*{WEIGHTS}"))
        if not weights or _is_fresh(model, folder, settings.cleanup.grace_seconds):
            continue
        size = sum(path.lstat().st_size for path in weights)
        against = (
            _links(folder, weights)
            or (_unverified(bank, model) if settings.cleanup.verify_upload else None)
            or _spared(db, model.run_id, weights, dry_run=dry_run)
        )
        if against is None:
            reason = f"in the data bank as {model.archive.file_id}"
            removed.append(Item(name=model.run_id, bytes=size, reason=reason))
        else:
            kept.append(Item(name=model.run_id, bytes=size, reason=against))
    return Report(dry_run=dry_run, removed=tuple(removed), kept=tuple(kept))


def _is_fresh(model: Uploaded, folder: Path, grace_seconds: float) -> bool:
    # Whoever loads a model touches its folder: the requests themselves are forgotten after a day.
    touched = time.time() - folder.stat().st_mtime
    ages = (model.uploaded_seconds, model.used_seconds, touched)
    return any(age is not None and age < grace_seconds for age in ages)


def _links(folder: Path, weights: list[Path]) -> str | None:
    if is_folder(folder) and all(map(is_file, weights)):
        return None
    return "it is no file: links are not followed"


def _unverified(bank: DataBank, model: Uploaded) -> str | None:
    try:
        found = bank.head(model.archive.file_id)
    except (DataNotFound, DataBankUnavailable) as error:
        return error.message
    if (found.size, found.sha256) != (model.archive.bytes, model.archive.sha256):
        return "the data bank has other bytes under its id"
    return None


def _spared(db: Database, run_id: str, weights: list[Path], *, dry_run: bool) -> str | None:
    """Remove the weights, or say why they stay."""
    in_use = "a queued or running job reads it"
    if dry_run:
        return in_use if run_id in uses.models_in_use(db) else None
    try:
        with locked(lock_of(weights[0].parent), should_stop=at_once):
            # A job runs before it takes the lock to see that its model is whole.
            if run_id in uses.models_in_use(db):
                return in_use
            for path in weights:
                path.unlink()
    except StopRequested:
        return "it is being fetched"
    return None
