"""What a finished run ends with, for whoever tells of its end. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer_app import artifacts
from trainer_app.artifacts import Pointer
from trainer_app.core.files import fsync_directory
from trainer_app.core.perplexity import perplexity
from trainer_app.errors import ModelIncompatible, NotReady
from trainer_app.folders import is_away
from trainer_app.restore import damaged_of
from trainer_app.store.lease import Published

# Of its manifest.
FIGURES: Final = (
    "final_loss",
    "final_perplexity",
    "best_val_loss",
    "test_loss",
    "test_perplexity",
    "bits_per_byte",
    "early_stopped",
    "steps",
)
LOSSES: Final = ("test_loss", "best_val_loss", "final_loss")  # the first that there is counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the events of a completed run say of it."""

    result_bytes: int  # of the model's files
    final_metrics: dict[str, object]


def read_published(final: Path, *, sealed: str | None = None) -> Published:
    """What a run has come to, by the manifest of its model; raises as ``read_manifest`` does.

    ``sealed``: the manifest's digest, where whoever asks has published it and knows.
    """
    model = artifacts.pointer(final, sealed=sealed)
    return _published(model, artifacts.read_manifest(final, sealed=model.sha256))


def _published(model: Pointer, manifest: Mapping[str, object]) -> Published:
    measured = {name: manifest.get(name) for name in FIGURES}
    size = sum(file.bytes for file in model.files)
    return Published(result=json.dumps(measured | {"bytes": size}), sha256=model.sha256)


def left_in_place(final: Path, run_id: str) -> Published | None:
    """The same of a run of which nothing was written down, where its model is in place.

    It is where an attempt died just after it had renamed it. None also where nobody can tell, and
    where it lies beneath a disk that is not mounted.
    """
    if is_away(final.parents[1], os.environ):
        return None
    try:
        model = artifacts.pointer(final)
        if damaged_of(final, model.files) is not None:
            return None
        manifest = artifacts.read_manifest(final, sealed=model.sha256)
        fsync_directory(final.parent)  # who renamed it may have died before
    except (NotReady, ModelIncompatible, OSError):
        return None
    is_measured = any(isinstance(manifest.get(name), int | float) for name in LOSSES)
    if not is_measured or manifest.get("run_id") != run_id:
        return None
    return _published(model, manifest)


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
