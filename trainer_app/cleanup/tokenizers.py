"""Delete tokenizers that no run needs any more."""

from __future__ import annotations

import os
from typing import Final

from trainer_app import artifacts
from trainer_app.cleanup.removal import is_folder, remove_folder, size_of
from trainer_app.cleanup.report import Item, Report
from trainer_app.settings import Settings
from trainer_app.store import uses
from trainer_app.store.database import Database

_DAY: Final = 86_400.0


def clean_tokenizers(db: Database, settings: Settings, *, dry_run: bool) -> Report:
    """Delete finished tokenizers that were without use for so many days: rows first, then files.

    A tokenizer that a queued, running or completed run names stays for ever. Folders that no row
    names are not touched.
    """
    min_seconds = settings.tokenizer_cleanup.min_unused_days * _DAY
    removed: list[Item] = []
    kept: list[Item] = []
    for unused in uses.unused_tokenizers(db, min_seconds=min_seconds):
        name = unused.tokenizer_id
        folder = artifacts.tokenizer_directory(settings, name)
        reason = f"unused for {unused.unused_seconds / _DAY:.1f} days"
        if not is_folder(folder):
            gone = not os.path.lexists(folder)
            reason = "its folder is gone" if gone else "its folder is none: links are not followed"
            kept.append(Item(name=name, bytes=0, reason=reason))
            continue
        item = Item(name=name, bytes=size_of(folder), reason=reason)
        if not dry_run:
            if not uses.forget_tokenizer(db, name, min_seconds=min_seconds):
                continue  # it has come into use since
            remove_folder(folder)
        removed.append(item)
    return Report(dry_run=dry_run, removed=tuple(removed), kept=tuple(kept))
