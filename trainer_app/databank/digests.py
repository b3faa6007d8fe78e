"""Digests of files that take a while to read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO, Final

from trainer_app.core.files import blocks
from trainer_app.core.stopping import ShouldStop, raise_if_stopped
from trainer_app.safe_paths import open_regular

_BLOCK: Final = 1 << 20


def sha256_of(path: Path, should_stop: ShouldStop) -> str:
    """The SHA-256 of a file's bytes, in hex. Raises StopRequested between two blocks."""
    with open_regular(path) as file:
        return sha256_of_open(file, should_stop)


def sha256_of_open(file: BinaryIO, should_stop: ShouldStop) -> str:
    """The same of a file that is open at its beginning."""
    digest = hashlib.sha256()
    for block in blocks(file, _BLOCK):
        raise_if_stopped(should_stop)
        digest.update(block)
    return digest.hexdigest()
