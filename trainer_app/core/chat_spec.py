"""What a turn of a chat asks. Imports no torch: the API parses requests into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trainer_app.core.json_spec import JsonSpec

LONGEST_MESSAGE: Final = 16_384  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSpec(JsonSpec):
    """One turn, as resolved: parsed once at the edge, never validated again.

    The sampling is that of a GenerateSpec.
    """

    session_id: str | None = None  # None: a chat that is yet to begin
    message: str  # 1 to LONGEST_MESSAGE characters
    max_new_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    seed: int | None = None
