"""The finished models of the inference worker: it keeps those that it used last."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

from tasks import process
from trainer_app import artifacts
from trainer_app.core.device import resolve_device
from trainer_app.core.loaded import LoadedModel, load_model
from trainer_app.store.lease import Claim

_KEPT_MODELS: Final = 4


def model_folder(claim: Claim) -> Path:
    """The published model of the run that a request is about."""
    assert claim.run_id is not None
    return artifacts.model_directory(process.settings(), claim.run_id)


def finished_model(claim: Claim) -> LoadedModel:
    """The same, ready to be used. Raises NotReady and ModelIncompatible."""
    directory = model_folder(claim)
    return _loaded(directory, artifacts.pointer(directory).sha256)


@lru_cache(maxsize=_KEPT_MODELS)
def _loaded(directory: Path, sha256: str) -> LoadedModel:  # noqa: ARG001 - sha256 is in the key
    """A model in memory: read again when its artifact was replaced."""
    return load_model(directory, device=resolve_device("auto"))
