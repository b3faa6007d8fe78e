"""The figures that a finished run ends with, for whoever tells of its end. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer_app.core.perplexity import perplexity

LOSSES: Final = ("test_loss", "best_val_loss", "final_loss")  # the first that there is counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the events of a completed run say of it."""

    result_bytes: int  # of the model's files
    final_metrics: dict[str, object]


def figures_of(result: str, final: Path) -> Figures:
    """Out of the result in a run's row; ``final`` is the folder of its model.

    ``test_loss`` is a float for whoever listens, never null. A run without a test split has the
    validation loss of the same weights there, without that split either its last training loss.
    The manifest and the log have each under its own name.
    """
    measured: dict[str, float | None] = json.loads(result)
    loss = next(loss for name in LOSSES if (loss := measured[name]) is not None)
    return Figures(
        result_bytes=int(measured["bytes"] or 0),
        final_metrics={
            "test_loss": loss,
            "test_ppl": perplexity(loss),
            "artifact_path": str(final),
        },
    )
