"""What a generation is asked to do. Imports no torch: the API parses requests into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trainer_app.core.json_spec import JsonSpec

MAX_NEW_TOKENS: Final = 1024
MAX_TEMPERATURE: Final = 2.0
MAX_RETURN_SEQUENCES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateSpec(JsonSpec):
    """One request, as resolved: parsed once at the edge, never validated again."""

    prompt_text: str = ""  # empty: a text from its beginning
    max_new_tokens: int = 64  # of each sequence, 1 to MAX_NEW_TOKENS
    temperature: float = 1.0  # 0 to MAX_TEMPERATURE; 0: always the likeliest token
    top_k: int = 50  # sample from so many of the likeliest tokens; 0: off
    top_p: float = 1.0  # sample from the fewest tokens of at least this probability, 0 to 1
    stop_on_eos: bool = True  # False: go on into the next text
    stop_sequences: tuple[str, ...] = ()  # none empty; the text ends before the first that occurs
    seed: int | None = None  # None: another text each time
    num_return_sequences: int = 1  # 1 to MAX_RETURN_SEQUENCES
