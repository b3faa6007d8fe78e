"""Remove what uploads that were cut off have left: parts of texts, and texts without a row."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from trainer_app.cleanup.report import Item, Report
from trainer_app.core.stopping import StopRequested
from trainer_app.file_lock import at_once, locked
from trainer_app.store import corpora
from trainer_app.store.database import Database
from trainer_app.upload_folder import corpus_path, lock_path, mark_path, marked, sweep

# Since its upload. Until then a repeat of the POST may come, and record what is there.
_UNRECORDED_SECONDS: Final = 600.0


def clean_uploads(db: Database, folder: Path) -> Report:
    """Remove parts that nobody writes, and texts whose upload ended before their row was there.

    Of texts those alone that an upload has left marked: any other without a row, as where the
    database was restored or is a new one, is not ours to judge. Raises Unavailable.
    """
    waiting = [sha256 for sha256 in marked(folder) if _is_old(mark_path(folder, sha256))]
    if waiting:
        db.ping(to_write=True)  # before the lock is held, and uploads have to wait for it
    removed = [
        Item(name=name, bytes=size, reason="its upload was cut off")
        for name, size in sweep(folder).items()
    ]
    for sha256 in waiting:
        with suppress(StopRequested):  # an upload has its turn: the next pass
            removed += _settled(db, folder, sha256)
    return Report(dry_run=False, removed=tuple(removed), kept=())


def _is_old(mark: Path) -> bool:
    with suppress(FileNotFoundError):  # its upload is over just now
        return time.time() - mark.stat().st_mtime > _UNRECORDED_SECONDS
    return False


def _settled(db: Database, folder: Path, sha256: str) -> list[Item]:
    """Remove a text's mark, and its file where it has no row; what has gone."""
    path = corpus_path(folder, sha256)
    gone: list[Item] = []

    def remove() -> None:
        with suppress(FileNotFoundError):  # cut off before the rename, or deleted since
            size = path.stat().st_size
            path.unlink()
            gone.append(Item(name=path.name, bytes=size, reason="it was never recorded"))

    # No upload of the same bytes stands between its file and its row.
    with locked(lock_path(folder), should_stop=at_once):
        corpora.unless_recorded(db, sha256, remove)
        mark_path(folder, sha256).unlink(missing_ok=True)
    return gone
