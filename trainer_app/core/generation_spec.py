"""What a generation is asked to do. Imports no torch: the API parses requests into it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Final

MAX_NEW_TOKENS: Final = 1024
MAX_TEMPERATURE: Final = 2.0
MAX_RETURN_SEQUENCES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateSpec:
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

    def to_json(self) -> str:
        """A JSON object that ``from_json`` reads back to an equal spec."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> GenerateSpec:
        """The spec that ``to_json`` wrote; fields that another version knew are left out."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in json.loads(text).items() if name in known}
        values["stop_sequences"] = tuple(values.get("stop_sequences", ()))
        return cls(**values)
