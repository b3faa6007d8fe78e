"""Housekeeping that takes its time: models sent late, and clean-up.

It has a thread of its own, so that a large upload or a slow data bank keeps no job waiting for
its wake-up call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from tasks import process
from tasks.roots import away
from tasks.upload import send
from trainer_app import artifacts
from trainer_app.cleanup.corpus_cache import clean_corpus_cache
from trainer_app.cleanup.models import clean_models
from trainer_app.cleanup.report import Report
from trainer_app.cleanup.runs import clean_runs
from trainer_app.cleanup.tokenizers import clean_tokenizers
from trainer_app.cleanup.tokens import clean_tokens
from trainer_app.cleanup.uploads import clean_uploads
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import ShouldStop, StopRequested
from trainer_app.databank.client import DataBank
from trainer_app.errors import ArtifactUploadFailed, Unavailable
from trainer_app.log import JobLog, job_log_path
from trainer_app.restore import is_whole
from trainer_app.store import runs, uploads
from trainer_app.store.lease import Status

_PASS_SECONDS: Final = 60.0
_FIRST_WAIT: Final = 300.0  # before a failed upload is tried again; doubles each time
_LONGEST_WAIT: Final = 6 * 3_600.0

_log = structlog.get_logger(__name__)


class SlowDuties:
    """All of them, and what they remember from one pass to the next."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, int] = {}  # of late uploads, by run
        self._not_before: dict[str, float] = {}
        self._told: dict[str, Report] = {}

    def run(self, stop: threading.Event) -> None:
        """Pass after pass until ``stop`` is set; what fails is logged, and done in the next."""

        def should_stop() -> StopReason | None:
            return StopReason.DRAIN if stop.is_set() else None

        while not stop.is_set():
            self.one_pass(should_stop)
            stop.wait(_PASS_SECONDS)

    def one_pass(self, should_stop: ShouldStop) -> None:
        """Each duty once; none while what it would look for lies on a disk that is not mounted."""
        for duty in (
            self._upload,
            self._clean_runs,
            self._clean_tokens,
            self._clean_models,
            self._clean_corpora,
            self._clean_tokenizers,
            self._clean_uploads,
        ):
            if (root := away()) is not None:
                _log.warning("nothing is cleaned up while a disk is away", folder=str(root))
                return
            try:
                duty(should_stop)
            except StopRequested:
                return
            except Unavailable as error:
                _log.warning("the database is away", error=str(error))
            except Exception:
                # One duty's fault, be it a full disk or the database, must not end the others.
                _log.exception("a duty failed", duty=duty.__name__.strip("_"))

    def _upload(self, should_stop: ShouldStop) -> None:
        """Send the models of completed runs whose upload has failed, less often each time."""
        if process.settings().data_bank.url is None:
            return
        for run_id in uploads.waiting(process.database()):
            folder = artifacts.model_directory(process.settings(), run_id)
            # Not whole: it is on another host, the one that trained it.
            if self._clock() < self._not_before.get(run_id, 0.0):
                continue
            sealed = runs.get(process.database(), run_id).artifact_sha256
            if is_whole(folder, sealed=sealed):
                self._send(run_id, folder, sealed, should_stop)

    def _send(self, run_id: str, folder: Path, sealed: str | None, should_stop: ShouldStop) -> None:
        settings = process.settings()
        try:
            archive = send(
                settings,
                folder,
                sealed=sealed,
                request_id=None,
                should_stop=should_stop,
                on_message=lambda message: _log.debug(message, run_id=run_id),
            )
        except ArtifactUploadFailed as error:
            failures = self._failures[run_id] = self._failures.get(run_id, 0) + 1
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (failures - 1))
            self._not_before[run_id] = self._clock() + wait
            _log.warning(error.message, run_id=run_id, again_in_seconds=wait)
            return
        if uploads.record_late(process.database(), run_id, archive):
            log = JobLog(job_log_path(settings, run_id), run_id=run_id)
            log.info("the model is in the data bank", file_id=archive.file_id, bytes=archive.bytes)
            log.close()

    def _clean_runs(self, _should_stop: ShouldStop) -> None:
        settings = process.settings()
        report = clean_runs(process.database(), settings, dry_run=False)
        for item in report.removed:
            # Whoever resumes the run is to find out why it starts over.
            can_be_resumed = not item.reason.startswith(Status.COMPLETED)
            if can_be_resumed and (path := job_log_path(settings, item.name)).exists():
                log = JobLog(path, run_id=item.name)
                log.info(f"its checkpoints were deleted: {item.reason}", bytes=item.bytes)
                log.close()
        self._tell("runs", report)

    def _clean_tokens(self, _should_stop: ShouldStop) -> None:
        settings = process.settings()
        if settings.token_cache_cleanup.enabled:
            report = clean_tokens(process.database(), settings, dry_run=False)
            self._tell("tokens", report)

    def _clean_models(self, should_stop: ShouldStop) -> None:
        settings = process.settings()
        if settings.cleanup.enabled and settings.data_bank.url is not None:
            dry_run = settings.cleanup.dry_run
            with DataBank(settings.data_bank, should_stop=should_stop) as bank:
                report = clean_models(process.database(), settings, bank, dry_run=dry_run)
            self._tell("models", report)

    def _clean_corpora(self, _should_stop: ShouldStop) -> None:
        rules = process.settings().corpus_cache_cleanup
        if rules.enabled:
            folder = process.settings().paths.corpus_cache
            report = clean_corpus_cache(process.database(), folder, rules, dry_run=False)
            self._tell("corpus-cache", report)

    def _clean_tokenizers(self, _should_stop: ShouldStop) -> None:
        settings = process.settings()
        if settings.tokenizer_cleanup.enabled:
            report = clean_tokenizers(process.database(), settings, dry_run=False)
            self._tell("tokenizers", report)

    def _clean_uploads(self, _should_stop: ShouldStop) -> None:
        report = clean_uploads(process.database(), process.settings().paths.uploads)
        self._tell("uploads", report)

    def _tell(self, what: str, report: Report) -> None:
        """Log what has gone, and what would in a dry run, once."""
        if report == self._told.get(what):
            return
        self._told[what] = report
        event = "would be deleted" if report.dry_run else "deleted"
        for item in report.removed:
            _log.info(event, what=what, name=item.name, bytes=item.bytes, reason=item.reason)
