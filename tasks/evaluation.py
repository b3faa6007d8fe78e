"""Evaluate a finished model on a split of its corpus, or on another text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tasks import process, staging
from tasks.corpora import corpus_file
from tasks.fetched import corpus_of, run_of
from tasks.job import Done, Job
from tasks.models import published_model
from tasks.publishing import publish
from tasks.roots import wait_for
from trainer_app import artifacts
from trainer_app.core.device import release_memory
from trainer_app.core.evaluate import Evaluation
from trainer_app.core.evaluate_run import evaluate_run, evaluate_text
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.core.files import (
    disk_full_named,
    fsync_directory,
    remove_directory,
    write_atomically,
)
from trainer_app.core.spec import TrainSpec
from trainer_app.core.splits import Split
from trainer_app.errors import CorpusNotFound
from trainer_app.restore import check_digests


def work(job: Job) -> Done:
    """Measure what the claimed request asks for, and keep it beside the models."""
    settings = process.settings()
    spec = EvaluateSpec.from_json(job.claim.spec)
    wait_for(job, settings.paths.artifacts)  # it may have gone since the job was claimed
    staging.remove_earlier(settings, job.claim.job_id, job.claim.attempt)
    evaluation = _evaluate(job, spec)
    release_memory()  # of a GPU that a run trains on: to keep the result may be waited for
    file = artifacts.evaluation_file(settings, str(job.claim.run_id), spec.split)
    result = {
        "loss": evaluation.loss,
        "perplexity": evaluation.perplexity,
        "bits_per_byte": evaluation.bits_per_byte,
        "artifact_path": str(file),
    }
    shown = {
        "run_id": job.claim.run_id,
        "split": spec.split,
        "path_override": spec.path_override,
        "request_id": job.claim.job_id,
        "status": "completed",
        **result,
        "tokens": evaluation.tokens,
        "error": None,
    }
    done = Done(result=json.dumps(result), result_id=job.claim.job_id)
    _keep(job, file, json.dumps(shown, indent=2, allow_nan=False).encode() + b"\n", done)
    return done


def _keep(job: Job, file: Path, data: bytes, done: Done) -> None:
    """Put what was measured in its place, unless another has taken this attempt's."""
    claim = job.claim
    prepared = staging.of_evaluation(process.settings(), claim.job_id, claim.attempt)

    # Made before the lease is renewed for the last time: whoever takes the job over takes it away,
    # and would find none if it came later. Where the disk is away, not beneath it.
    wait_for(job, process.settings().paths.artifacts)
    with disk_full_named(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        prepared.mkdir()

    def rename() -> None:
        with disk_full_named(file):
            write_atomically(prepared / file.name, data)
            (prepared / file.name).replace(file)
            fsync_directory(file.parent)

    try:
        publish(job, rename, is_in_place=lambda: _holds(file, data))
        job.published = done
    finally:
        remove_directory(prepared)


def _holds(file: Path, data: bytes) -> bool:
    """Whether it is this evaluation that is kept, and none before it."""
    try:
        return file.read_bytes() == data
    except FileNotFoundError:
        return False


def _evaluate(job: Job, spec: EvaluateSpec) -> Evaluation:
    settings = process.settings()
    run = run_of(job, str(job.claim.run_id)).spec
    model = published_model(job)
    folder = model.folder
    check_digests(folder, job.held.should_stop, sealed=model.sealed)
    trained = artifacts.read_manifest(folder, sealed=model.sealed).get("batch_size")
    if isinstance(trained, int):  # of a short corpus less than was asked for
        run = replace(run, batch_size=trained)
    if spec.text_sha256 is not None:
        return evaluate_text(
            folder,
            corpus_file(settings, None, spec.path_override),
            sha256=spec.text_sha256,
            spec=run,
            tokens=settings.paths.tokens,
            device="auto",
            on_message=job.log.info,
            should_stop=job.held.should_stop,
        )
    return evaluate_run(
        folder,
        Split[spec.split.upper()],
        spec=run,
        corpus=_corpus(job, run),
        tokens=settings.paths.tokens,
        device="auto",
        on_message=job.log.info,
        should_stop=job.held.should_stop,
    )


def _corpus(job: Job, run: TrainSpec) -> Path:
    try:
        return corpus_of(job, run, on_message=job.log.info)
    except CorpusNotFound:
        # Its token ids may still be there: only where they are not is the text missed.
        return process.settings().paths.tokens / "no-such-corpus"
