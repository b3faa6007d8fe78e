"""Train a tokenizer: claim the job, call the engine, publish the artifact."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tasks import process, staging
from tasks.fetched import corpus_of, with_digest
from tasks.job import Done, Job
from tasks.manifest import Times, tokenizer_manifest
from tasks.publishing import publish
from tasks.roots import wait_for
from trainer_app import artifacts
from trainer_app.core.files import end_replacements
from trainer_app.core.observer import StopReason
from trainer_app.core.spec import TokenizerSpec
from trainer_app.core.tokenizer_training import train_tokenizer
from trainer_app.errors import ModelIncompatible, NotReady
from trainer_app.store.lease import Artifact
from trainer_app.store.uploads import LOCAL


def work(job: Job) -> Done | StopReason:
    """Train the claimed tokenizer to its end, or stop; either way leave nothing behind."""
    settings = process.settings()
    wait_for(job, settings.paths.artifacts)  # one that has gone since it was claimed
    wait_for(job, settings.paths.runs)
    job.held.confirm()  # it may have slept since it was claimed: what is there is another's then
    spec = TokenizerSpec.from_json(job.claim.spec)
    staging.remove_earlier(settings, job.claim.job_id, job.claim.attempt)
    folder = staging.of_tokenizer(settings, job.claim.job_id, job.claim.attempt)
    folder.mkdir(parents=True)
    final = artifacts.tokenizer_directory(settings, spec.tokenizer_id or job.claim.job_id)
    end_replacements(final)
    try:
        return _train(job, spec, folder, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _train(job: Job, spec: TokenizerSpec, folder: Path, final: Path) -> Done | StopReason:
    settings = process.settings()
    spec = with_digest(job, spec, on_message=job.log.info)
    corpus = corpus_of(job, spec, on_message=job.log.info)
    report = train_tokenizer(
        spec,
        corpus,
        folder,
        sample_max_lines=settings.tokenizer_sample_max_lines,
        on_message=job.log.info,
        should_stop=lambda: job.held.should_stop() is not None,
    )
    reason = job.held.should_stop()
    if reason is not None or report is None:
        return reason or StopReason.CANCEL
    times = Times(
        created_at=job.claim.created_at, completed_at=time.time(), attempts=job.claim.attempt
    )
    manifest = tokenizer_manifest(final.name, spec, report, times)
    copy = staging.copy_beside(final, job.claim.job_id, job.claim.attempt)
    rename = partial(artifacts.publish, folder, final, manifest, copy=copy)
    sealed = publish(job, rename, is_in_place=lambda: _has(final, manifest))
    published = artifacts.pointer(final, sealed=sealed)
    job.published = Done(
        result=report.to_json(),
        result_id=final.name,
        result_bytes=sum(file.bytes for file in published.files),
        artifact=Artifact(storage=LOCAL, sha256=published.sha256),
    )
    return job.published


def _has(final: Path, manifest: Mapping[str, object]) -> bool:
    """Whether it is this tokenizer that is published, and none before it of the same name."""
    try:
        found = artifacts.read_manifest(final)
    except (NotReady, ModelIncompatible):
        return False
    return {**found, **manifest} == found
