"""Keep the cache of token ids within its size, and its file system from filling up."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from trainer_app.cleanup.removal import is_folder, remove_folder, size_of
from trainer_app.cleanup.report import Item, Report
from trainer_app.room import free_bytes
from trainer_app.settings import Settings
from trainer_app.store import uses
from trainer_app.store.database import Database

_ENTRY: Final = re.compile(r"([0-9a-f]{32})-[0-9a-f]{32}")  # of digests: core/encode.py


def clean_tokens(
    db: Database, settings: Settings, *, dry_run: bool, free: Callable[[Path], int] = free_bytes
) -> Report:
    """Delete the longest unused token ids until APP__TOKEN_CACHE_CLEANUP__* hold.

    Never those of a text that a job reads which lives or may still be resumed. Whatever goes is
    made again from its text. A job that opens token ids just when they go makes them again, too:
    ``core.encode.while_it_stands``.
    """
    folder, rules = settings.paths.tokens, settings.token_cache_cleanup
    entries = [
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if _ENTRY.fullmatch(path.name) and is_folder(path)
    ]
    sizes = {path: size_of(path) for path in entries}
    total = sum(sizes.values())
    room = free(folder) if entries else 0
    removed: list[Item] = []
    kept: list[Item] = []
    # Whoever uses an entry touches its folder.
    for path in sorted(entries, key=lambda path: path.stat().st_mtime):
        if total > rules.max_bytes:
            reason = f"the cache holds {total} bytes, more than {rules.max_bytes}"
        elif room < rules.min_free_bytes:
            reason = f"{room} bytes are free, fewer than {rules.min_free_bytes}"
        else:
            break
        size = sizes[path]
        if _text_of(path) in _texts_in_use(db, settings):
            against = "a job that lives or may be resumed reads it"
            kept.append(Item(name=path.name, bytes=size, reason=against))
            continue
        if not dry_run:
            remove_folder(path)
        removed.append(Item(name=path.name, bytes=size, reason=reason))
        total -= size
        room += size
    return Report(dry_run=dry_run, removed=tuple(removed), kept=tuple(kept))


def _text_of(path: Path) -> str:
    return path.name.partition("-")[0]


def _texts_in_use(db: Database, settings: Settings) -> frozenset[str]:
    digests = uses.texts_in_use(db, failed_seconds=settings.jobs.failure_ttl_seconds)
    return frozenset(digest[:32] for digest in digests)
