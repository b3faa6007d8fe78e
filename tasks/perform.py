"""How every job runs: claim it, do its work under the lease, and write down how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog

from tasks import by_hand, process, restored
from tasks.held import Held, draining, now_by_both_clocks
from tasks.owner import owner
from tasks.specs import leave_to_newer
from tasks.spent import USERS, may_be_the_process
from trainer_app.core.files import fault_of_the_disk
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import StopRequested
from trainer_app.errors import RUN_CODES, LeaseLost, OutOfMemory, TrainerError, Unavailable
from trainer_app.events import ErrorKind, JobEvents
from trainer_app.log import JobLog, job_log_path
from trainer_app.store import lease, runs
from trainer_app.store.lease import Artifact, Claim, Ended, JobKind, Status
from trainer_app.store.tables import FINAL

_PATIENCE_SECONDS: Final = 3_600.0  # for a database that is away when a job ends
_LONGEST_PAUSE_SECONDS: Final = 10.0
# Somebody waits for the answer to these, and a chat takes no other turn meanwhile.
_WAITED_FOR: Final = frozenset({JobKind.GENERATE, JobKind.SCORE, JobKind.CHAT, JobKind.EVALUATE})
_QUEUED_AGAIN: Final = frozenset({Status.QUEUED, Status.CANCELLED})  # the latter if asked for
_SHORT_WAIT_SECONDS: Final = 1  # before their second attempt

Written = TypeVar("Written")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A job's work is finished and its result is in place."""

    result: str  # JSON
    result_id: str
    result_bytes: int = 0
    artifact: Artifact | None = None
    final_metrics: Mapping[str, object] = field(default_factory=dict)  # empty: no such event
    problem: TrainerError | None = None  # what went wrong beside the work, which is done


@dataclass(slots=True, kw_only=True)
class Job:
    """What the work of a job is given."""

    claim: Claim
    held: Held
    log: JobLog
    events: JobEvents
    published: Done | None = None  # its end from then on, whatever stops or fails afterwards
    renames: bool = False  # what it has made into its place, or has done so

    def renew_lease(self) -> None:
        """Make sure, before a result is published, that it is still this attempt's to publish.

        However long the database is away: the work is done. Raises LeaseLost.
        """
        seconds = process.settings().jobs.lease_seconds
        insist(lambda: lease.beat(process.database(), self.claim, lease_seconds=seconds))


# A run fails with a code of RUN_CODES. What was there when it was posted, and is not any more, has
# changed; half precision without a GPU is all that a run's fields can still be wrong in.
_RUN_CODE_OF: Final = {
    "CORPUS_NOT_FOUND": "CORPUS_CHANGED",
    "TOKENIZER_NOT_FOUND": "MODEL_INCOMPATIBLE",
    "RUN_NOT_FOUND": "MODEL_INCOMPATIBLE",
    "NOT_READY": "MODEL_INCOMPATIBLE",
    "CONFLICT": "MODEL_INCOMPATIBLE",
    "INVALID_INPUT": "CUDA_NOT_AVAILABLE",
}

Work = Callable[[Job], Done | StopReason]


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
        _log.warning("the worker of this process has died: the job is left to another")
        return
    by_hand.heed([job_id])  # a run that is cancelled in Redis never starts
    if (reason := _why_left(job_id)) is not None:
        _log.warning(reason)
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
        on_stuck=lambda reason: _end_stuck(job, reason),
        since=since,
    ) as held:
        job = Job(claim=claim, held=held, log=log, events=events)
        outcome = _outcome(job, work)
        _end_held(job, outcome)
    log.close()
    failed = isinstance(outcome, TrainerError) and may_be_the_process(outcome)
    if process.growth().is_too_much() or failed:
        process.spent.set()


def _why_left(job_id: str) -> str | None:
    """Why the job is left to another, if it is. Waits as long as a lease lasts for the database."""
    asked = False

    def why() -> str | None:
        nonlocal asked
        if asked and draining.is_set():
            return "the worker is to stop: the job is left to another"
        asked = True
        try:
            return leave_to_newer(process.database(), job_id)
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
        if asked and draining.is_set():
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


def _end_held(job: Job, outcome: Done | StopReason | TrainerError) -> None:
    try:
        _end(job, outcome)
    except LeaseLost:
        # Not into the job's log: that is the other attempt's by now.
        _log.warning("the lease was lost: another attempt goes on", job_id=job.claim.job_id)


def _end_stuck(job: Job, reason: StopReason) -> None:
    """Write down the end of a job whose process is about to end because it does not stop.

    A run whose model may be in its place by then is left to the housekeeping, which looks.
    """
    if reason is not StopReason.FENCED:
        job.log.error("it did not stop when it was asked to: its process ends", reason=reason)
    claim = job.claim
    if job.renames and job.published is None and claim.kind is JobKind.TRAIN:
        with suppress(Unavailable):
            lease.expire(
                process.database(), claim.job_id, owner_prefix=claim.owner, attempt=claim.attempt
            )
    else:
        _end_held(job, reason)
    process.publisher().close()


def _end(job: Job, outcome: Done | StopReason | TrainerError) -> None:
    if outcome is StopReason.FENCED:
        raise LeaseLost("the lease has passed to another attempt")
    if job.published is not None and not isinstance(outcome, Done):
        outcome = job.published
    match outcome:
        case Done():
            _complete(job, outcome)
        case StopReason.DRAIN:
            _hand_back(job, "handed back: its worker shuts down", cause="its worker shut down")
        case StopReason.PAUSE:
            run = insist(lambda: runs.get(process.database(), job.claim.job_id))
            _hand_back(job, f"paused at step {run.checkpoint_step or 0}")
        case StopReason.CANCEL:
            _fail(job, Status.CANCELLED, None, "cancelled", "user")
        case StopReason.TIMEOUT:
            limit = process.settings().jobs.timeout_seconds
            _fail(job, Status.FAILED, "TIMED_OUT", f"it ran for longer than {limit} s", "user")
        case TrainerError() if isinstance(outcome, USERS):
            _fail(job, Status.FAILED, outcome.code, outcome.message, "user")
        case _:
            _retry_or_fail(job, outcome)


def _complete(job: Job, done: Done) -> None:
    message = "" if done.problem is None else done.problem.message
    _write_end(
        job,
        {message},
        {Status.COMPLETED},
        lambda: lease.finish(
            process.database(),
            job.claim,
            Status.COMPLETED,
            result=done.result,
            artifact=done.artifact,
            error_code=None if done.problem is None else done.problem.code,
            message=message,
        ),
    )
    job.log.info("completed")
    job.events.completed(result_id=done.result_id, result_bytes=done.result_bytes)
    if done.final_metrics:
        job.events.metrics_completed(done.final_metrics)


def _hand_back(job: Job, message: str, *, cause: str | None = None) -> None:
    ended = _write_end(
        job,
        {message},
        _QUEUED_AGAIN,
        lambda: lease.hand_back(process.database(), job.claim, message=message, cause=cause),
    )
    if ended.status is Status.CANCELLED:
        _tell_of_cancellation(job)
        return
    job.log.info(message)
    with suppress(Unavailable):  # housekeeping publishes it when the database is back
        for wakeup in lease.due(process.database(), job_id=job.claim.job_id):
            process.queue().publish(wakeup)


def _fail(job: Job, status: Status, code: str | None, message: str, kind: ErrorKind) -> None:
    if job.claim.kind is JobKind.TRAIN and code is not None:
        code = run_code(code)
    _write_end(
        job,
        {message},
        {status},
        lambda: lease.finish(
            process.database(), job.claim, status, error_code=code, message=message
        ),
    )
    job.log.error(message, status=status, error_code=code)
    job.events.failed(kind, message)


def run_code(code: str) -> str:
    """The code of RUN_CODES that a run fails with, for that of the error it met."""
    code = _RUN_CODE_OF.get(code, code)
    return code if code in RUN_CODES else TrainerError.code


def _retry_or_fail(job: Job, error: TrainerError) -> None:
    jobs = process.settings().jobs
    retries = insist(lambda: lease.retries(process.database(), job.claim))
    if retries >= jobs.retry_max:
        _fail(job, Status.FAILED, error.code, error.message, "system")
        return
    waits = jobs.retry_intervals_seconds
    delay = waits[min(retries, len(waits) - 1)]
    if job.claim.kind in _WAITED_FOR:
        delay = min(delay, _SHORT_WAIT_SECONDS)
    failed = f"attempt {job.claim.attempt} failed: {error.message}"
    message, paused = f"{failed}; again in {delay} s", f"{failed}; paused"
    ended = _write_end(
        job,
        {message, paused},
        _QUEUED_AGAIN,
        lambda: lease.retry_later(
            process.database(),
            job.claim,
            delay_seconds=delay,
            message=message,
            paused_message=paused,
            cause=error.message,
        ),
    )
    is_cancelled = ended.status is Status.CANCELLED
    job.log.error(failed if is_cancelled else ended.message, error_code=error.code)
    if is_cancelled:
        _tell_of_cancellation(job)


def _tell_of_cancellation(job: Job) -> None:
    job.log.warning("cancelled", status=Status.CANCELLED)
    job.events.failed("user", "cancelled")


def _write_end(
    job: Job, messages: Collection[str], ends: Collection[Status], change: Callable[[], Ended]
) -> Ended:
    """Write down how the job ends, with one of these messages; where it stands then: in ``ends``.

    Where the database took the end, but went away before it could say so, the next try finds the
    lease gone. That is no reason to leave the end untold.
    """
    unanswered = False

    def write() -> Ended:
        nonlocal unanswered
        try:
            return change()
        except Unavailable:
            unanswered = True
            raise
        except LeaseLost:
            stands = None
            if unanswered:
                stands = lease.stands(process.database(), job.claim, messages=messages)
            if stands is None or stands.status not in ends:
                raise
            return stands

    ended = insist(write)
    job.held.ended = ended.status in FINAL
    return ended


def insist(change: Callable[[], Written], *, patience_seconds: float | None = None) -> Written:
    """Make a change, however long the database is away; None: as at the end, to keep the work."""
    patience = _PATIENCE_SECONDS if patience_seconds is None else patience_seconds
    give_up_at = time.monotonic() + patience
    pause = 0.1
    while True:
        try:
            return change()
        except Unavailable:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
