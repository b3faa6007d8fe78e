"""Train a model: claim the run, call the engine, publish the artifact."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from tasks import process, staging
from tasks.corpus_watch import CorpusWatch
from tasks.fetched import corpus_of, finished_tokenizer, whole_model, with_digest
from tasks.figures import LOSSES, figures_of, read_published
from tasks.job import Done, Job
from tasks.journal import Journal
from tasks.manifest import Times, metrics_file, model_card, model_manifest
from tasks.patience import insist
from tasks.publishing import publish
from tasks.reporting import EventReporter, LogReporter, RowReporter, telling, why
from tasks.roots import wait_for
from tasks.upload import keep, not_sent
from trainer_app import artifacts
from trainer_app.core.files import disk_full_named, end_replacements, write_atomically
from trainer_app.core.fit import fit
from trainer_app.core.observer import Observers, StopReason
from trainer_app.core.run_files import Finished, Inputs, Stopped, Workspace
from trainer_app.core.spec import TrainSpec
from trainer_app.core.sums import SHA256, quickest
from trainer_app.errors import Unavailable
from trainer_app.log import job_log_path
from trainer_app.restore import check_digests, is_whole
from trainer_app.safe_paths import open_beneath
from trainer_app.store import lease, metrics
from trainer_app.store.lease import Artifact
from trainer_app.store.uploads import LOCAL
from trainer_app.tracking.tracker import Tracker

_WEIGHTS: Final = "model.safetensors"


def work(job: Job) -> Done | StopReason:
    """Train the claimed run to its end, or to the point where it must stop."""
    settings = process.settings()
    spec = TrainSpec.from_json(job.claim.spec)
    workspace = Workspace(
        run=settings.paths.runs / job.claim.job_id,
        run_id=job.claim.job_id,
        tokens=settings.paths.tokens,
        compiled=settings.paths.compiled,
        attempt=job.claim.attempt,
        checkpoint_seconds=settings.jobs.checkpoint_seconds,
        max_threads=settings.threads,
        confirm=job.held.confirm,
        is_cancelled=partial(_is_cancelled, job),
        summed_by=partial(_summed_by, job),
        is_cut_off=lambda: job.held.is_cut_off,
        await_folder=partial(wait_for, job, settings.paths.runs),
    )
    # What is there is the way to go on, and may say that there is nothing left to do.
    wait_for(job, settings.paths.artifacts)
    wait_for(job, settings.paths.runs)
    job.held.confirm()  # it may have slept since it was claimed: what is there is another's then
    staging.remove_earlier(settings, job.claim.job_id, job.claim.attempt)
    final = artifacts.model_directory(settings, job.claim.job_id)
    end_replacements(final)
    sealed = None
    if is_whole(final):  # it is where an attempt died after it had published
        with job.held.interruptible():  # but nothing after it: see _publish
            job.log.info(f"{why(job.claim)}, its model was published already")
    else:
        with telling(job) as say:
            spec = with_digest(job, spec, on_message=say)
        outcome = _fit(job, spec, workspace)
        if isinstance(outcome, Stopped):
            return outcome.reason
        sealed = _publish(job, outcome, final)
    done = _recorded(job, final, sealed)
    # Checkpoints have served: a finished run is its artifact.
    job.held.confirm()
    shutil.rmtree(workspace.run, ignore_errors=True)
    with telling(job) as say, job.held.interruptible():
        kept = keep(job, final, sealed=sealed, on_message=say)
    return replace(done, artifact=kept.artifact, problem=kept.problem)


def _fit(job: Job, spec: TrainSpec, workspace: Workspace) -> Finished | Stopped:
    """Train, with all who want to hear of it."""
    settings = process.settings()
    tracker = Tracker(
        settings.tracking,
        job.log,
        run_id=job.claim.job_id,
        spec=spec,
        memory=workspace.run / "tracked.json",
    )
    database = process.database()
    with closing(Journal(workspace.run, database, job.claim)) as journal:
        with tracker, closing(RowReporter(database, job.claim, job.held)) as rows:
            events = EventReporter(job.events)
            told = Observers(
                [job.held, LogReporter(job.log, job.claim), journal, rows, events, tracker]
            )
            inputs = _inputs(job, spec, told)
            watch = _watch(job, spec, inputs.corpus)
            outcome = fit(spec, inputs, workspace, Observers([told, *watch]))
            if isinstance(outcome, Finished):
                for one in watch:
                    one.check()
            tracker.end(outcome)
        if rows.behind and (reason := job.held.should_stop()) is not None:
            # The database is away and lacks the end of the curve, which only the journal has: to
            # publish would be to delete it. The next attempt comes to the same end.
            return Stopped(reason=reason, step=0, checkpoint=None)
        if isinstance(outcome, Finished):
            steps = outcome.steps
            if rows.has_dropped or journal.is_behind:
                insist(lambda: journal.tell_missing(up_to=steps))
            if job.claim.attempt > 1:
                # An attempt before may have got further than an early stop of this one.
                insist(lambda: metrics.cut(database, job.claim, after=steps))
    return outcome


def _is_cancelled(job: Job) -> bool:
    """Whether the row says so now; where the database is away, nobody has told it."""
    try:
        return lease.cancel_requested(process.database(), job.claim)
    except Unavailable:
        return False


def _summed_by(job: Job) -> str:
    """By what a checkpoint is summed: whoever goes on from it must know that, or would delete it.

    Workers of the version before, which know SHA-256 alone, may be beside this one, and take the
    place of all that are stopped when an update is taken back.
    """
    if job.held.is_to_stop:
        return SHA256
    try:
        workers = process.queue().workers()
    except Unavailable:
        return SHA256
    everybody = workers and all(quickest() in worker.reads_sums for worker in workers)
    return quickest() if everybody else SHA256


def _inputs(job: Job, spec: TrainSpec, observer: Observers) -> Inputs:
    tokenizer, base = spec.tokenizer_id, spec.pretrained_run_id
    say = observer.on_message
    base_model = None
    if base is not None:
        published = whole_model(job, base, on_message=say)
        base_model = published.folder
        check_digests(base_model, job.held.should_stop, sealed=published.sealed)
    return Inputs(
        corpus=corpus_of(job, spec, on_message=say),
        tokenizer=None if tokenizer is None else finished_tokenizer(job, tokenizer),
        base_model=base_model,
    )


def _watch(job: Job, spec: TrainSpec, corpus: Path) -> list[CorpusWatch]:
    """Of a file that others may edit; uploads and what was fetched are named by their digests."""
    if spec.corpus_path is None:
        return []
    watch = CorpusWatch(
        corpus,
        sha256=spec.corpus_sha256,
        posted_at=job.claim.created_at,
        should_stop=job.held.should_stop,
    )
    watch.check()
    return [watch]


def _publish(job: Job, finished: Finished, final: Path) -> str | None:
    """Complete the folder, make sure that the lease still stands, and rename it into place.

    Returns the digest of its manifest; None where an interrupt came just then. A cancellation was
    last looked for by the engine, when all was written: one that comes now is heard only where this
    takes so long that it is interrupted.
    """
    settings = process.settings()
    run_id = job.claim.job_id
    folder = finished.directory
    (folder / "eval").mkdir(exist_ok=True)
    write_atomically(folder / "eval" / "metrics.json", metrics_file(finished).encode())
    write_atomically(folder / "README.md", model_card(finished).encode())
    _copy_log(job_log_path(settings, run_id), folder / "logs.jsonl")
    times = Times(
        created_at=job.claim.created_at, completed_at=time.time(), attempts=job.claim.attempt
    )
    rename = partial(
        artifacts.publish,
        folder,
        final,
        model_manifest(run_id, finished, times),
        known_digests={_WEIGHTS: finished.weights_sha256},
        copy=staging.copy_beside(final, run_id, job.claim.attempt),
    )
    return publish(job, rename, is_in_place=lambda: is_whole(final))


def _copy_log(log: Path, target: Path) -> None:
    try:
        source = open_beneath(log.parent, log.name)
    except FileNotFoundError:  # a disk that took no line has none
        return
    with source, disk_full_named(target), target.open("wb") as copy:
        shutil.copyfileobj(source, copy)


def _recorded(job: Job, final: Path, sealed: str | None) -> Done:
    """What has become of the run, by its manifest, while its model is here alone.

    Written down before all that takes its time: who dies from now on leaves a completed run.
    ``sealed``: the manifest's digest, where this attempt has published it and knows.
    """
    model = read_published(final, sealed=sealed)
    measured = json.loads(model.result)
    job.log.info("final figures", **{name: measured[name] for name in LOSSES})
    figures = figures_of(model.result, final)
    job.published = Done(
        result=model.result,
        result_id=job.claim.job_id,
        result_bytes=figures.result_bytes,
        artifact=Artifact(storage=LOCAL, sha256=model.sha256),
        problem=not_sent(process.settings()),
        final_metrics=figures.final_metrics,
    )
    insist(partial(lease.record_published, process.database(), job.claim, model))
    return job.published
