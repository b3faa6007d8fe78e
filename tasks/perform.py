"""How every job runs: claim it, do its work under the lease, and write down how it ended."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import structlog

from tasks import by_hand, process, restored
from tasks.ending import end_held, end_stuck
from tasks.growth import release
from tasks.held import Held, draining
from tasks.job import Done, Job, Left, Work
from tasks.owner import owner
from tasks.patience import insist
from tasks.roots import leave_until_back
from tasks.sleep import now_by_both_clocks
from tasks.specs import leave_to_newer
from tasks.spent import may_be_the_process
from trainer_app.core.files import fault_of_the_disk
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import StopRequested
from trainer_app.errors import LeaseLost, OutOfMemory, TrainerError, Unavailable
from trainer_app.log import JobLog, job_log_path
from trainer_app.queue import inference_queue
from trainer_app.store import lease
from trainer_app.store.lease import Claim

_ORPHANED: Final = "the worker of this process has died: the job is left to another"

_log = structlog.get_logger(__name__)


def perform(job_id: str, *, hostname: str, work: Work) -> None:
    """Run a job unless somebody else has it.

    Returns normally for a duplicate, stale or cancelled message, and when the job failed: the
    database holds what became of it. Where the reason may lie in this process, it is spent then; so
    it is where its memory has grown.
    """
    try:
        _perform(job_id, hostname=hostname, work=work)
    except Exception as error:
        if may_be_the_process(error):
            process.spent.set()
        raise


def _perform(job_id: str, *, hostname: str, work: Work) -> None:
    structlog.contextvars.clear_contextvars()  # of the job before
    structlog.contextvars.bind_contextvars(job_id=job_id)
    settings = process.settings()
    holder = owner(hostname)
    if process.is_orphaned():
        _log.warning(_ORPHANED)
        return
    by_hand.heed([job_id])  # a run that is cancelled in Redis never starts
    if (left := _why_left(job_id)) is not None:
        (_log.warning if left.is_news else _log.debug)(left.reason)
        return
    since = now_by_both_clocks()
    claim = _claim(job_id, holder)
    if claim is None:
        _log.info("nothing to do: the job is taken, cancelled or done")
        return
    log = JobLog(
        job_log_path(settings, job_id),
        run_id=claim.run_id or job_id,
        attempt=claim.attempt,
        request_id=claim.request_id,
    )
    structlog.contextvars.bind_contextvars(request_id=claim.request_id)
    events = process.job_events(
        claim.kind, job_id=job_id, user_id=claim.user_id, queue_name=claim.queue
    )
    log.info("started", worker=holder)
    if claim.counted is not None:
        log.warning(restored.said(claim))
    events.started()
    with Held(
        process.database(),
        process.redis_client(),
        settings.jobs,
        claim,
        say=log.warning,
        on_stuck=lambda reason: end_stuck(job, reason),
        is_orphaned=process.is_orphaned,
        since=since,
    ) as held:
        job = Job(claim=claim, held=held, log=log, events=events)
        outcome = _outcome(job, work)
        end_held(job, outcome)
    log.close()
    failed = isinstance(outcome, TrainerError) and may_be_the_process(outcome)
    is_answer = isinstance(outcome, Done) and claim.queue == inference_queue(settings)
    del outcome  # an error's traceback holds whatever the work did
    if not is_answer:  # to which the next request need not be slow: its model stays, too
        release()
    if process.growth().is_too_much() or failed:
        process.spent.set()


def _why_left(job_id: str) -> Left | None:
    """Why the job is left to another, if it is. Waits as long as a lease lasts for the database."""
    asked = False

    def why() -> Left | None:
        nonlocal asked
        if process.is_orphaned():
            return Left(_ORPHANED)
        if asked and draining.is_set():
            return Left("the worker is to stop: the job is left to another")
        asked = True
        try:
            database = process.database()
            return leave_to_newer(database, job_id) or leave_until_back(database, job_id)
        except Unavailable as error:
            if may_be_the_process(error):  # no patience helps it
                raise TrainerError(error.message) from error
            raise

    return insist(why, patience_seconds=process.settings().jobs.lease_seconds)


def _claim(job_id: str, holder: str) -> Claim | None:
    """Claim the job. A database that goes away in the middle may have granted it."""
    lease_seconds = process.settings().jobs.lease_seconds
    asked = False

    def claim() -> Claim | None:
        nonlocal asked
        if asked and (draining.is_set() or process.is_orphaned()):
            return None  # if it was granted, its lease ends as soon as this process does
        before = lease.claim_of(process.database(), job_id, holder) if asked else None
        asked = True
        found = before or lease.claim(
            process.database(), job_id, holder, lease_seconds=lease_seconds
        )
        return None if found is None else restored.counted_anew(found)

    with suppress(LeaseLost):  # it slept since it was granted
        return insist(claim, patience_seconds=lease_seconds)
    return None


def _outcome(job: Job, work: Work) -> Done | StopReason | TrainerError:
    try:
        with job.held.interruptible():
            return work(job)
    except LeaseLost:
        return StopReason.FENCED
    except StopRequested as stop:
        return stop.reason
    except TrainerError as error:
        return error
    except MemoryError:
        return OutOfMemory("the worker ran out of memory")
    except Exception as error:
        # Kept with its traceback for whoever mends it.
        _log.exception("a job failed", job_id=job.claim.job_id)
        root = process.settings().paths.data_root
        fault = fault_of_the_disk(error, root) if isinstance(error, OSError) else None
        return fault or TrainerError(f"{type(error).__name__}: {error}")
