"""What an evaluation is asked to measure. Imports no torch: the API parses requests into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from trainer_app.core.json_spec import JsonSpec

EvaluatedSplit = Literal["validation", "test"]

EVALUATED_SPLITS: Final[tuple[str, ...]] = get_args(EvaluatedSplit)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateSpec(JsonSpec):
    """One request, as resolved: parsed once at the edge, never validated again."""

    split: EvaluatedSplit = "validation"  # of the run's own corpus
    path_override: str | None = None  # under the corpus root: evaluate all of this text instead
    text_sha256: str | None = None  # of the bytes of path_override when it was posted
