"""Where the corpus of a job lies."""

from __future__ import annotations

from pathlib import Path

from trainer_app import safe_paths
from trainer_app.settings import Settings


def corpus_file(settings: Settings, file_id: str | None, path: str | None) -> Path:
    """The file of a corpus; raises CorpusNotFound where it is gone or out of bounds."""
    if path is not None:
        return safe_paths.resolve(settings.paths.corpus, path)
    return safe_paths.resolve(settings.paths.uploads, f"{file_id}.txt")
