"""Sums by which a damaged file of a checkpoint is told, each with the name of its algorithm.

They find what a disk does to a file, not what a person does: whoever can write the file can write
its sum. So the quickest will do that is there: xxh3_128, a fifth of the time of SHA-256, where
the package xxhash is installed. Versions before knew SHA-256 alone, whose sums have no prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trainer_app.errors import TrainerError
from trainer_app.safe_paths import open_regular

if TYPE_CHECKING:
    from _hashlib import HASH

SHA256: Final = "sha256"
XXH3: Final = "xxh3_128"
ALGORITHMS: Final[dict[str, Callable[[], HASH | xxh3_128]]] = {}  # that are here
with suppress(ImportError):
    from xxhash import xxh3_128

    ALGORITHMS[XXH3] = xxh3_128
ALGORITHMS[SHA256] = hashlib.sha256


def quickest() -> str:
    """The algorithm that takes the least time here."""
    return XXH3 if XXH3 in ALGORITHMS else SHA256


def sum_of(path: Path, algorithm: str) -> str:
    """Of a plain file's bytes: lower-case hex digits, after the algorithm where it is not SHA-256.

    Raises OSError.
    """
    with open_regular(path) as file:
        digits = hashlib.file_digest(file, ALGORITHMS[algorithm]).hexdigest()
    return digits if algorithm == SHA256 else f"{algorithm}:{digits}"


def algorithm_of(known: str) -> str:
    """By which a sum was made."""
    return XXH3 if known.startswith(f"{XXH3}:") else SHA256


def is_sum_of(path: Path, known: str) -> bool:
    """Whether a plain file's bytes still have a sum.

    Raises OSError, and TrainerError where nobody here can tell.
    """
    algorithm = algorithm_of(known)
    if algorithm not in ALGORITHMS:
        raise TrainerError(
            f"{path.parent.name} has sums of {algorithm}: the package xxhash reads them"
        )
    return sum_of(path, algorithm) == known
