"""The ids that a URL may carry: one pattern, checked by the router before a view runs."""

from __future__ import annotations

from typing import Final

from werkzeug.routing import BaseConverter

from trainer_app.safe_paths import ID_PATTERN, id_pattern, is_id, is_new_id, new_id_pattern

__all__ = [
    "DOCUMENTED",
    "PATTERN",
    "RESERVED",
    "FirstIdConverter",
    "IdConverter",
    "id_pattern",
    "is_id",
    "is_new_id",
    "new_id_pattern",
]

PATTERN: Final = ID_PATTERN
DOCUMENTED: Final = {"pattern": f"^{PATTERN}$"}  # what the OpenAPI document says of a field of one

# The last part of POST /runs/train and POST /tokenizers/train: nothing else is called so, so that
# another method gets 405 there.
RESERVED: Final = "train"


class IdConverter(BaseConverter):
    """Matches what ``is_id`` says are ids alone, so that anything else is an unknown path: 404.

    All of it in the expression: the router counts the methods of a rule that a later check refuses
    among those that an address takes.
    """

    regex = rf"(?!.*\.\.){PATTERN}"


class FirstIdConverter(IdConverter):
    """The same where RESERVED is an address of its own."""

    regex = rf"(?!{RESERVED}\Z){IdConverter.regex}"
