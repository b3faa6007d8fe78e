"""The ids that a URL may carry: one pattern, checked by the router before a view runs."""

from __future__ import annotations

import re
from typing import Final

from werkzeug.routing import BaseConverter, ValidationError

PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_WELL_FORMED: Final = re.compile(PATTERN)


def is_id(text: str) -> bool:
    """Whether the text may name a run, a tokenizer, a corpus or a request."""
    return _WELL_FORMED.fullmatch(text) is not None and ".." not in text


class IdConverter(BaseConverter):
    """Matches ids alone, so that anything else is an unknown path: 404."""

    regex = PATTERN

    def to_python(self, value: str) -> str:
        if not is_id(value):
            raise ValidationError
        return value
