"""What a job reads and the data bank has: fetched when it is not here."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tasks import process
from tasks.corpora import corpus_file
from tasks.job import Job
from tasks.patience import insist
from trainer_app import artifacts
from trainer_app.core.json_spec import DIGEST_PENDING
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.databank import corpus_cache
from trainer_app.databank.client import DataBank
from trainer_app.databank.download import download
from trainer_app.databank.retry import Patience
from trainer_app.errors import (
    CorpusNotFound,
    DataBankUnavailable,
    DataNotFound,
    DiskAway,
    ModelIncompatible,
    NotReady,
    TokenizerNotFound,
)
from trainer_app.file_lock import locked
from trainer_app.folders import MARK, is_away
from trainer_app.restore import (
    TOKENIZER,
    check_digests,
    damage,
    damaged_file,
    lock_of,
    restore,
    unfinished,
)
from trainer_app.store import lease, runs, tokenizers, uploads
from trainer_app.store.runs import Run
from trainer_app.store.tables import Status
from trainer_app.store.uploads import Archive

OnMessage = Callable[[str], object]
Spec = TypeVar("Spec", TrainSpec, TokenizerSpec)


def with_digest(job: Job, spec: Spec, *, on_message: OnMessage) -> Spec:
    """The spec with the digest of its corpus, where the data bank did not give it at the POST.

    It is in the row before anything is made of it, so all attempts are of one text. Raises
    CorpusNotFound, DataBankUnavailable, LeaseLost and StopRequested.
    """
    if spec.corpus_sha256:
        return spec
    complete = replace(spec, corpus_sha256=_digest(job, str(spec.corpus_file_id), on_message))
    kept = json.loads(job.claim.spec)  # what a later version has in it stays
    kept.pop(DIGEST_PENDING, None)
    text = json.dumps(kept | {"corpus_sha256": complete.corpus_sha256}, sort_keys=True)
    insist(lambda: lease.settle(process.database(), job.claim, text))
    return complete


def _digest(job: Job, file_id: str, on_message: OnMessage) -> str:
    settings = process.settings()
    try:
        corpus_file(settings, file_id, None)
    except CorpusNotFound:
        if settings.data_bank.url is None:
            raise
    else:
        return file_id  # it has been uploaded here since, and uploads are named by their digest
    with _data_bank(job) as bank:
        return corpus_cache.identify(
            bank,
            settings.paths.corpus_cache,
            file_id,
            patience=Patience(seconds=settings.data_bank.retry_seconds),
            should_stop=job.held.should_stop,
            on_message=on_message,
        )


def corpus_of(job: Job, spec: TrainSpec | TokenizerSpec, *, on_message: OnMessage) -> Path:
    """The file of a job's corpus: here, or from the data bank.

    Raises CorpusNotFound, CorpusChanged, DataBankUnavailable, DiskFull and StopRequested.
    """
    settings = process.settings()
    try:
        return corpus_file(settings, spec.corpus_file_id, spec.corpus_path)
    except CorpusNotFound:
        if spec.corpus_file_id is None or settings.data_bank.url is None:
            raise
    with _data_bank(job) as bank:
        return corpus_cache.fetch(
            bank,
            settings.paths.corpus_cache,
            spec.corpus_file_id,
            sha256=spec.corpus_sha256,
            max_bytes=settings.data_bank.max_bytes,
            patience=Patience(seconds=settings.data_bank.retry_seconds),
            should_stop=job.held.should_stop,
            on_message=on_message,
        )


def finished_tokenizer(job: Job, tokenizer_id: str) -> Path:
    """The folder of a tokenizer, once all its files are found to be as they were published.

    Raises TokenizerNotFound where clean-up has deleted it, DiskAway where it may lie on a disk that
    is not mounted, ModelIncompatible where a file or the manifest is damaged, and StopRequested.
    """
    directory = artifacts.tokenizer_directory(process.settings(), tokenizer_id)
    sealed = job.ask(lambda: tokenizers.get(process.database(), tokenizer_id)).artifact_sha256
    try:
        check_digests(directory, job.held.should_stop, needed=TOKENIZER, sealed=sealed)
    except NotReady:
        _refuse_if_away(process.settings().paths.artifacts)
        raise TokenizerNotFound(f"{tokenizer_id}: there is no such tokenizer any more") from None
    return directory


def run_of(job: Job, run_id: str) -> Run:
    """The run that a job reads. Raises RunNotFound, and StopRequested."""
    return job.ask(lambda: runs.get(process.database(), run_id))


@dataclass(frozen=True, slots=True)
class Published:
    """A model as it was published."""

    folder: Path
    sealed: str | None  # the digest of its manifest, as ``artifacts.pointer`` has it


def whole_model(job: Job, run_id: str, *, on_message: OnMessage) -> Published:
    """A finished model, its weights fetched back if clean-up has deleted them.

    Raises NotReady for a run that has not completed, ModelIncompatible for one whose files are
    damaged here and nowhere else; DiskAway where the disk that they belong on is away;
    DataBankUnavailable, DiskFull and StopRequested.
    """
    directory = artifacts.model_directory(process.settings(), run_id)
    with locked(lock_of(directory), should_stop=job.held.should_stop):
        run = run_of(job, run_id)
        if run.status is not Status.COMPLETED:
            raise NotReady(unfinished(run_id, run.status))
        damaged = damaged_file(directory, sealed=run.artifact_sha256)
        if damaged is not None:
            _fetch(job, run, directory, damaged, on_message)
        os.utime(directory)  # clean-up goes by the last use
    return Published(directory, run.artifact_sha256)


def _fetch(job: Job, run: Run, directory: Path, damaged: str, on_message: OnMessage) -> None:
    settings = process.settings()
    run_id = run.run_id
    _refuse_if_away(settings.paths.artifacts, settings.paths.runs)
    archive = job.ask(lambda: uploads.of_run(process.database(), run_id))
    if archive is None:
        raise ModelIncompatible(damage(run_id, damaged))
    if settings.data_bank.url is None:
        raise ModelIncompatible(
            f"{damage(run_id, damaged)}; the data bank has it, but this worker knows of none"
        )
    place = settings.paths.runs / f"restore-{run_id}"
    on_message("fetching the model from the data bank")
    packed = _downloaded(job, archive, place / "model.tar.gz", on_message)
    _refuse_if_away(settings.paths.artifacts)  # it may have taken hours
    restore(
        packed,
        directory,
        staging=place / "model",
        sha256=str(run.artifact_sha256),
        should_stop=job.held.should_stop,
    )
    shutil.rmtree(place, ignore_errors=True)


def _refuse_if_away(*roots: Path) -> None:
    """Raise DiskAway where what is missing may lie on a disk that is not mounted."""
    for root in roots:
        if is_away(root, os.environ):
            raise DiskAway(f"{root} is not mounted, or has lost its {MARK}")


def _downloaded(job: Job, archive: Archive, target: Path, on_message: OnMessage) -> Path:
    bank_settings = process.settings().data_bank
    with _data_bank(job) as bank:
        try:
            download(
                bank,
                archive.file_id,
                target,
                sha256=archive.sha256,
                max_bytes=archive.bytes,
                patience=Patience(seconds=bank_settings.retry_seconds),
                should_stop=job.held.should_stop,
                on_message=on_message,
            )
        except DataNotFound as error:
            # Not the user's fault: it was there.
            raise DataBankUnavailable(f"the model is lost: {error.message}") from error
    return target


def _data_bank(job: Job) -> DataBank:
    return DataBank(
        process.settings().data_bank,
        request_id=job.claim.request_id,
        should_stop=job.held.should_stop,
    )
