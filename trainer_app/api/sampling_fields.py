"""The fields that say how a model chooses its next token, with defaults of their schema's own."""

from __future__ import annotations

from trainer_app.api.fields import StrictInteger, StrictNumber, about, between
from trainer_app.core.generation_spec import MAX_NEW_TOKENS, MAX_TEMPERATURE


def max_new_tokens(default: object) -> StrictInteger:
    """How much to write."""
    return StrictInteger(
        load_default=default,
        validate=between(1, MAX_NEW_TOKENS),
        metadata=about("Most tokens to add."),
    )


def temperature(default: object) -> StrictNumber:
    """How boldly."""
    return StrictNumber(
        load_default=default,
        validate=between(0, MAX_TEMPERATURE),
        metadata=about("0: always the most likely token."),
    )


def top_k(default: object) -> StrictInteger:
    """Among how many tokens."""
    return StrictInteger(
        load_default=default,
        validate=between(0, 1_000_000),
        metadata=about("Choose among this many tokens; 0: among all."),
    )


def top_p(default: object) -> StrictNumber:
    """Among tokens of how much probability."""
    return StrictNumber(
        load_default=default,
        validate=between(0, 1),
        metadata=about("Choose among the likeliest tokens of this much probability; 1: all."),
    )
