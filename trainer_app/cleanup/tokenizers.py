"""Delete tokenizers that no run needs any more."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from trainer_app import artifacts
from trainer_app.cleanup.removal import is_folder, set_aside, size_of
from trainer_app.cleanup.report import Item, Report
from trainer_app.core.files import put_back
from trainer_app.settings import Settings
from trainer_app.store import uses
from trainer_app.store.database import Database

_DAY: Final = 86_400.0


def clean_tokenizers(db: Database, settings: Settings, *, dry_run: bool) -> Report:
    """Delete finished tokenizers that were without use for so many days, rows and files.

    A tokenizer that a queued, running or completed run names stays for ever. Folders that no row
    names are not touched; of a tokenizer whose folder is gone the rows go, so that its name can be
    used again.
    """
    min_seconds = settings.tokenizer_cleanup.min_unused_days * _DAY
    removed: list[Item] = []
    kept: list[Item] = []
    for unused in uses.unused_tokenizers(db, min_seconds=min_seconds):
        name = unused.tokenizer_id
        folder = artifacts.tokenizer_directory(settings, name)
        reason = f"unused for {unused.unused_seconds / _DAY:.1f} days"
        size = 0
        if is_folder(folder):
            size = size_of(folder)
        elif not os.path.lexists(folder):
            reason += ", and its folder is gone"
        else:
            reason = "its folder is none: links are not followed"
            kept.append(Item(name=name, bytes=0, reason=reason))
            continue
        if dry_run or _removed(db, name, folder, min_seconds):
            removed.append(Item(name=name, bytes=size, reason=reason))
    return Report(dry_run=dry_run, removed=tuple(removed), kept=tuple(kept))


def _removed(db: Database, name: str, folder: Path, min_seconds: float) -> bool:
    """Delete a tokenizer; False when it has come into use since."""
    gone: Path | None = None
    try:
        with uses.forgotten_tokenizer(db, name, min_seconds=min_seconds) as is_forgotten:
            if not is_forgotten:
                return False
            # Within the transaction: as soon as it has ended, the name may be another's.
            if is_folder(folder):
                gone = set_aside(folder)
    except BaseException:
        if gone is not None:
            put_back(gone)  # its rows are still there
        raise
    if gone is not None:
        shutil.rmtree(gone)
    return True
