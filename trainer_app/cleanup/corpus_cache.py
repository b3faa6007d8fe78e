"""Keep the cache of corpora within its size, and its file system from filling up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer_app.cleanup.removal import is_file
from trainer_app.cleanup.report import Item, Report
from trainer_app.core.stopping import StopRequested
from trainer_app.databank import corpus_cache
from trainer_app.databank.download import PART
from trainer_app.file_lock import at_once, locked
from trainer_app.room import free_bytes
from trainer_app.settings import CorpusCacheCleanup
from trainer_app.store import uses
from trainer_app.store.database import Database

_IN_USE: Final = "a queued or running job reads it"


def clean_corpus_cache(
    db: Database,
    folder: Path,
    rules: CorpusCacheCleanup,
    *,
    dry_run: bool,
    free: Callable[[Path], int] = free_bytes,
) -> Report:
    """Delete corpora that no unfinished job reads until the rules hold; then nothing more.

    Parts of downloads that nobody waits for go first. Whatever goes can be fetched again.
    """
    removed: list[Item] = []
    kept: list[Item] = []
    entries = [_entry(folder, file_id) for file_id in corpus_cache.ids(folder)]
    total = sum(entry.bytes for entry in entries)
    room = free(folder) if entries else 0
    for entry in sorted(entries, key=lambda entry: entry.rank(rules.eviction_policy)):
        reason = _reason(entry, rules, total, room)
        if reason is None:
            continue
        against = _spared(db, folder, entry, dry_run=dry_run)
        if against is None:
            removed.append(Item(name=entry.file_id, bytes=entry.bytes, reason=reason))
            total -= entry.bytes
            room += entry.bytes
        else:
            kept.append(Item(name=entry.file_id, bytes=entry.bytes, reason=against))
    return Report(dry_run=dry_run, removed=tuple(removed), kept=tuple(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    file_id: str
    paths: tuple[Path, ...]
    bytes: int
    used_at: float  # unix seconds
    fetched_at: float
    whole: bool

    def rank(self, policy: str) -> tuple[bool, float]:
        """What comes first goes first."""
        return self.whole, self.used_at if policy == "lru" else self.fetched_at


def _entry(folder: Path, file_id: str) -> _Entry:
    paths = tuple(corpus_cache.files(folder, file_id))
    main = paths[0].lstat()
    return _Entry(
        file_id=file_id,
        paths=paths,
        bytes=sum(path.lstat().st_size for path in paths),
        used_at=main.st_atime,
        fetched_at=main.st_mtime,
        whole=not paths[0].name.endswith(PART),
    )


def _reason(entry: _Entry, rules: CorpusCacheCleanup, total: int, room: int) -> str | None:
    """Why the entry should go, if it should."""
    if not entry.whole:
        return "a download that nobody waits for"
    if total > rules.max_bytes:
        return f"the cache holds {total} bytes, more than {rules.max_bytes}"
    if room < rules.min_free_bytes:
        return f"{room} bytes are free, fewer than {rules.min_free_bytes}"
    return None


def _spared(db: Database, folder: Path, entry: _Entry, *, dry_run: bool) -> str | None:
    """Remove the entry, or say why it stays."""
    if not all(map(is_file, entry.paths)):
        return "it is no file: links are not followed"
    if dry_run:
        return _IN_USE if entry.file_id in uses.corpora_in_use(db) else None
    try:
        with locked(corpus_cache.lock_path(folder, entry.file_id), should_stop=at_once):
            # A job runs before it takes the lock to fetch: one that is not seen here waits for
            # the lock, and then fetches the corpus again.
            if entry.file_id in uses.corpora_in_use(db):
                return _IN_USE
            for path in entry.paths:
                path.unlink()
    except StopRequested:
        return "it is being fetched"
    return None
