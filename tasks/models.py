"""The finished models of the inference worker: it keeps those that it used last."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

from tasks.fetched import whole_model
from tasks.perform import Job
from trainer_app import artifacts
from trainer_app.core.device import resolve_device
from trainer_app.core.loaded import LoadedModel, load_model

_KEPT_MODELS: Final = 4


def model_folder(job: Job) -> Path:
    """The published model of the run that a request is about. Raises as ``whole_model`` does."""
    return whole_model(job, str(job.claim.run_id), on_message=job.log.info)


def finished_model(job: Job) -> LoadedModel:
    """The same, ready to be used. Raises ModelIncompatible, too."""
    directory = model_folder(job)
    return _loaded(directory, artifacts.pointer(directory).sha256)


@lru_cache(maxsize=_KEPT_MODELS)
def _loaded(directory: Path, sha256: str) -> LoadedModel:  # noqa: ARG001 - sha256 is in the key
    """A model in memory: read again when its artifact was replaced."""
    return load_model(directory, device=resolve_device("auto"))
