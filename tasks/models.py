"""The finished models that requests are about: the inference worker keeps those it used last.

The light one keeps none: it would hold memory of a GPU that a run trains on, with nobody asking.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tasks import process
from tasks.fetched import Published, run_of, whole_model
from tasks.growth import own_bytes
from tasks.job import Job
from tasks.memory import device_bytes
from trainer_app import artifacts
from trainer_app.core.device import release_memory, resolve_device
from trainer_app.core.loaded import LoadedModel, load_model
from trainer_app.core.stopping import ShouldStop, never
from trainer_app.queue import inference_queue
from trainer_app.restore import check_digests

_KEPT_MODELS: Final = 4
_SHARE: Final = 0.25  # of the device's memory: training may use the same


def published_model(job: Job) -> Published:
    """The published model of the run that a request is about. Raises as ``whole_model`` does."""
    return whole_model(job, str(job.claim.run_id), on_message=job.log.info)


def finished_model(job: Job) -> LoadedModel:
    """The same, ready to be used. Raises ModelIncompatible and OutOfMemory, too."""
    model = published_model(job)
    stop = job.held.should_stop
    queue = inference_queue(process.settings())
    # One that keeps nothing goes with the job.
    nothing = KeptModels(device=resolve_device("auto"), max_bytes=0)
    keeper = _kept() if job.claim.queue == queue else nothing
    loaded = keeper.load(model.folder, sealed=model.sealed, should_stop=stop)
    loaded.check_trained_as(run_of(job, str(job.claim.run_id)).spec)
    return loaded


def kept_bytes() -> dict[str, int]:
    """What the models that this process keeps have taken of its own memory, by device."""
    if not _kept.cache_info().currsize:
        return {}  # it has loaded none, and is not to look for a device
    return {_kept().device: _kept().taken()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    sha256: str  # of the manifest
    file_bytes: int  # of its weights
    taken: int  # bytes of the process's own
    loaded: LoadedModel


class KeptModels:
    """Models in memory, the one used last at the end: so many, and no more bytes than a share.

    A model that is larger than the share is kept alone, until another is asked for.
    """

    def __init__(self, *, device: str, max_bytes: int) -> None:
        self.device = device
        self._max_bytes = max_bytes
        self._models: OrderedDict[Path, _Kept] = OrderedDict()

    def load(
        self, directory: Path, *, sealed: str | None = None, should_stop: ShouldStop = never
    ) -> LoadedModel:
        """The model, from memory unless its artifact was replaced.

        ``sealed``: as ``artifacts.pointer`` has it. Raises ModelIncompatible, OutOfMemory
        and StopRequested.
        """
        sha256 = artifacts.pointer(directory, sealed=sealed).sha256
        known = self._models.pop(directory, None)
        if known is None or known.sha256 != sha256:
            size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
            known = None  # its memory is needed
            self._make_room(size)
            check_digests(directory, should_stop, sealed=sha256)
            before = self._own_bytes()
            loaded = load_model(directory, device=self.device)
            taken = max(self._own_bytes() - before, 0)
            known = _Kept(sha256=sha256, file_bytes=size, taken=taken, loaded=loaded)
        self._models[directory] = known
        return known.loaded

    def _make_room(self, size: int) -> None:
        before = len(self._models)
        while self._models and (
            len(self._models) >= _KEPT_MODELS or self._bytes() + size > self._max_bytes
        ):
            self._models.popitem(last=False)
        if len(self._models) < before:
            release_memory()

    def taken(self) -> int:
        """Bytes of the process's own that all of them have taken."""
        return sum(kept.taken for kept in self._models.values())

    def _own_bytes(self) -> int:
        return own_bytes().get(self.device, 0)

    def _bytes(self) -> int:
        return sum(kept.file_bytes for kept in self._models.values())


@cache
def _kept() -> KeptModels:
    device = resolve_device("auto")
    memory = device_bytes(os.environ)
    return KeptModels(device=device, max_bytes=int(_SHARE * memory.get(device, memory["cpu"])))
