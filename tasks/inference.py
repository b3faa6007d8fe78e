"""Use a finished model: the worker keeps the models that it used last."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

from tasks import process
from tasks.perform import Done, Job
from trainer_app import artifacts
from trainer_app.core.device import resolve_device
from trainer_app.core.generate import generate
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.loaded import LoadedModel, load_model
from trainer_app.core.observer import StopReason

_KEPT_MODELS: Final = 4


def work(job: Job) -> Done | StopReason:
    """Continue the claimed request's prompt with its run's model."""
    assert job.claim.run_id is not None
    directory = artifacts.model_directory(process.settings(), job.claim.run_id)
    loaded = _loaded(directory, artifacts.pointer(directory).sha256)
    generation = generate(
        loaded,
        GenerateSpec.from_json(job.claim.spec),
        should_stop=lambda: job.held.should_stop() is not None,
    )
    reason = job.held.should_stop()
    if reason is not None:
        return reason
    return Done(result=generation.to_json(), result_id=job.claim.job_id)


@lru_cache(maxsize=_KEPT_MODELS)
def _loaded(directory: Path, sha256: str) -> LoadedModel:  # noqa: ARG001 - sha256 is in the key
    """A model in memory: read again when its artifact was replaced."""
    return load_model(directory, device=resolve_device("auto"))
