"""Send finished models to the data bank.

A run is complete once its model is published here. An upload that fails takes nothing from it:
the run completes with its model here alone, says why, and housekeeping tries again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from tasks import process
from tasks.job import Job
from trainer_app import artifacts
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import ShouldStop, StopRequested, raise_if_stopped
from trainer_app.databank.client import DataBank, Upload
from trainer_app.databank.retry import Patience, Tries, TryAgain
from trainer_app.errors import ArtifactUploadFailed, LeaseLost, TrainerError
from trainer_app.settings import Settings
from trainer_app.store.lease import Artifact
from trainer_app.store.uploads import DATA_BANK, LOCAL, Archive

_MESSAGE_SECONDS: Final = 5.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Where a finished model is now."""

    artifact: Artifact
    problem: ArtifactUploadFailed | None = None  # why it is not in the data bank


def keep(
    job: Job,
    folder: Path,
    *,
    on_message: Callable[[str], object],
    sealed: str | None = None,
) -> Kept:
    """Send the published model of a run to the data bank, where there is one.

    ``sealed``: the digest of its manifest, where this attempt has published it and knows.

    Raises LeaseLost, and nothing else: whatever goes wrong, the model is here.
    """
    settings = process.settings()
    here = Artifact(storage=LOCAL, sha256=artifacts.pointer(folder, sealed=sealed).sha256)
    if settings.data_bank.url is None:
        return Kept(artifact=here)
    try:
        archive = send(
            settings,
            folder,
            sealed=here.sha256,
            request_id=job.claim.request_id,
            should_stop=job.held.should_stop,
            on_message=on_message,
        )
    except StopRequested as stop:
        if stop.reason is StopReason.FENCED:
            raise LeaseLost("the lease has passed to another attempt") from None
        problem = ArtifactUploadFailed(f"the upload was stopped ({stop.reason})")
    except ArtifactUploadFailed as error:
        problem = error
    else:
        job.log.info("the model is in the data bank", file_id=archive.file_id, bytes=archive.bytes)
        return Kept(artifact=Artifact(storage=DATA_BANK, sha256=here.sha256, archive=archive))
    job.log.warning(problem.message, error_code=problem.code)
    return Kept(artifact=here, problem=problem)


def not_sent(settings: Settings) -> ArtifactUploadFailed | None:
    """What is said of a published model whose attempt ended before it was known to be sent.

    None: it need not be.
    """
    if settings.data_bank.url is None:
        return None
    return ArtifactUploadFailed("the model was not uploaded: the attempt ended before")


def send(
    settings: Settings,
    folder: Path,
    *,
    sealed: str | None,
    request_id: str | None,
    should_stop: ShouldStop,
    on_message: Callable[[str], object],
) -> Archive:
    """Store the model as a tar.gz, trying again as long as it may help.

    ``sealed``: as in ``artifacts.pointer``.

    Raises ArtifactUploadFailed, whatever goes wrong, and StopRequested.
    """
    try:
        on_message("packing the model for the data bank")
        upload = _measured(folder, sealed, should_stop, on_message)
        tries = Tries(Patience(seconds=settings.data_bank.retry_seconds), should_stop=should_stop)
        with DataBank(settings.data_bank, request_id=request_id, should_stop=should_stop) as bank:
            file_id = _stored(bank, upload, tries, on_message)
    except StopRequested:
        raise
    except TrainerError as error:
        raise ArtifactUploadFailed(f"the model was not uploaded: {error.message}") from error
    except Exception as error:
        # A finished model is not to be lost to a fault in what only copies it.
        _log.exception("an upload failed", folder=folder.name)
        name = type(error).__name__
        raise ArtifactUploadFailed(f"the model was not uploaded: {name}: {error}") from error
    return Archive(file_id=file_id, sha256=upload.sha256, bytes=upload.size)


def _stored(
    bank: DataBank, upload: Upload, tries: Tries, on_message: Callable[[str], object]
) -> str:
    while True:
        try:
            return bank.store(upload)
        except TryAgain as error:
            on_message(f"{error.message}; trying again")
            tries.failed(error)


def _measured(
    folder: Path,
    sealed: str | None,
    should_stop: ShouldStop,
    on_message: Callable[[str], object],
) -> Upload:
    """Size and digest of the archive, which is made twice and never kept: on no disk, in no RAM."""
    files = artifacts.pointer(folder, sealed=sealed).files
    digest = hashlib.sha256()
    size = 0
    for block in artifacts.stream_tar(folder, files):
        raise_if_stopped(should_stop)
        digest.update(block)
        size += len(block)

    def stream() -> Iterator[bytes]:
        sent, said_at = 0, 0.0
        for block in artifacts.stream_tar(folder, files):
            if time.monotonic() - said_at >= _MESSAGE_SECONDS:
                said_at = time.monotonic()
                on_message(f"uploading the model: {sent / 1e6:.1f} of {size / 1e6:.1f} MB")
            yield block
            sent += len(block)

    name = f"model-{folder.name}.tar.gz"
    return Upload(name=name, size=size, sha256=digest.hexdigest(), stream=stream)
