"""The fields that several kinds of job take, with defaults of their schema's own."""

from __future__ import annotations

from typing import Final

from trainer_app.api.fields import (
    INT64_MAX,
    LONGEST_PATH,
    UINT32_MAX,
    StrictInteger,
    StrictNumber,
    StrictString,
    about,
    between,
    length,
)
from trainer_app.api.ids import DOCUMENTED

CORPUS: Final = ("corpus_file_id", "corpus_path")  # exactly one of the two is given


def corpus_file_id() -> StrictString:
    """What to learn from: an upload."""
    return StrictString(
        load_default=None,
        validate=length(1, 128),
        metadata=about("An uploaded corpus; this or corpus_path.") | DOCUMENTED,
    )


def corpus_path() -> StrictString:
    """What to learn from: a file that is there."""
    return StrictString(
        load_default=None,
        validate=length(1, LONGEST_PATH),
        metadata=about("A file under the corpus root; this or corpus_file_id.", "books/all.txt"),
    )


def held_out(default: object, description: str) -> StrictNumber:
    """How much of the corpus is kept from learning."""
    return StrictNumber(load_default=default, validate=between(0, 0.5), metadata=about(description))


def seed(description: str, default: object = None) -> StrictInteger:
    """What to draw from."""
    return StrictInteger(
        load_default=default, validate=between(0, UINT32_MAX), metadata=about(description)
    )


def user_id(default: object, description: str) -> StrictInteger:
    """Whose it is."""
    return StrictInteger(
        load_default=default, validate=between(0, INT64_MAX), metadata=about(description)
    )
