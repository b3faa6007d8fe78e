"""What a scoring is asked to tell. Imports no torch: the API parses requests into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from trainer_app.core.json_spec import JsonSpec

DetailLevel = Literal["summary", "per_char"]

DETAIL_LEVELS: Final[tuple[str, ...]] = get_args(DetailLevel)
MAX_TOP_K: Final = 100
# What is told of single tokens is bounded: it is kept in the database and answered in one piece.
MAX_DETAILED_TOKENS: Final = 131_072
MAX_CANDIDATES: Final = 262_144  # of all positions together


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSpec(JsonSpec):
    """One request, as resolved: parsed once at the edge, never validated again."""

    text: str
    detail_level: DetailLevel = "summary"  # per_char: also each token and its surprisal
    top_k: int | None = None  # tell so many of the likeliest tokens at each place, 1 to MAX_TOP_K
    seed: int | None = None  # taken for the sake of clients that send one: nothing is drawn
