"""Names of jobs: a prefix and 128 bits, the first 48 of them the time, so that they sort by age.

The layout is that of UUID version 7 (RFC 9562, section 5.7) without its version and variant bits;
the digits are those of Crockford's base32, whose order is that of ASCII.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Final

_DIGITS: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH: Final = 26  # digits of 5 bits that hold 128 bits
_RANDOM_BITS: Final = 80

RUN: Final = "run"
TOKENIZER: Final = "tok"
GENERATE: Final = "gen"
SCORE: Final = "score"
EVALUATE: Final = "eval"
CHAT: Final = "chat"  # one turn
SESSION: Final = "session"

ID_PATTERN: Final = re.compile(rf"[a-z]{{2,8}}-[{_DIGITS}]{{{_LENGTH}}}")


def new_id(prefix: str) -> str:
    """A fresh name, for instance ``run-01k9v3m0e8xq6h7w2c4b5d8f9g``."""
    number = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    digits = (_DIGITS[number >> shift & 31] for shift in range((_LENGTH - 1) * 5, -1, -5))
    return f"{prefix}-{''.join(digits)}"
