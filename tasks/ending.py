"""How a job ends: written into its row, its log and its events."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from tasks import process, staging
from tasks.figures import left_in_place
from tasks.job import Done, Job
from tasks.patience import insist
from tasks.roots import LEAVE_FILES, away
from tasks.spent import USERS
from trainer_app import artifacts
from trainer_app.core.observer import StopReason
from trainer_app.errors import RUN_CODES, LeaseLost, RowDamaged, TrainerError, Unavailable
from trainer_app.events import ErrorKind
from trainer_app.folders import waits_for
from trainer_app.queue import send_all
from trainer_app.store import lease, runs
from trainer_app.store.lease import Ended, JobKind, Status
from trainer_app.store.tables import FINAL

# Somebody waits for the answer to these, and a chat takes no other turn meanwhile.
_WAITED_FOR: Final = frozenset({JobKind.GENERATE, JobKind.SCORE, JobKind.CHAT, JobKind.EVALUATE})
_SHORT_WAIT_SECONDS: Final = 1  # before their second attempt
_QUEUED_AGAIN: Final = frozenset({Status.QUEUED, Status.CANCELLED})  # the latter if asked for
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

_log = structlog.get_logger(__name__)


def end_held(job: Job, outcome: Done | StopReason | TrainerError) -> None:
    """End the attempt as its work came out, unless it is no longer this attempt's to end."""
    try:
        _end(job, outcome)
    except LeaseLost:
        # Not into the job's log: that is the other attempt's by now.
        _log.warning("the lease was lost: another attempt goes on", job_id=job.claim.job_id)


def end_stuck(job: Job, reason: StopReason) -> None:
    """Write down the end of a job whose process is about to end because it does not stop.

    Where it was about to put a run's model into its place, that is made impossible first: one that
    is there by then is left to the housekeeping, which completes the run.
    """
    if reason is not StopReason.FENCED:
        job.log.error("it did not stop when it was asked to: its process ends", reason=reason)
    claim, settings = job.claim, process.settings()
    taken: list[Path] = []
    in_place = None
    if job.may_be_in_place and job.published is None and claim.kind is JobKind.TRAIN:
        taken = staging.take_away(settings, claim.job_id, claim.attempt)
        final = artifacts.model_directory(settings, claim.job_id)
        in_place = left_in_place(final, claim.job_id)
    if in_place is None:
        end_held(job, reason)
    else:
        with suppress(Unavailable):
            lease.expire(
                process.database(), claim.job_id, owner_prefix=claim.owner, attempt=claim.attempt
            )
    for path in taken:
        shutil.rmtree(path, ignore_errors=True)
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
        case _:
            _end_by(job, outcome)


def _end_by(job: Job, error: TrainerError) -> None:
    if isinstance(error, RowDamaged):  # which no disk and no other attempt makes whole
        _fail(job, Status.FAILED, TrainerError.code, error.message, "system")
    elif job.claim.kind in LEAVE_FILES and (root := away()) is not None:
        # Whatever it says, that is why: what is missing may lie there.
        job.log.warning(error.message)
        _hand_back(job, waits_for(root), cause="its disk was away")
    elif isinstance(error, USERS):
        _fail(job, Status.FAILED, error.code, error.message, "user")
    else:
        _retry_or_fail(job, error)


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
        due = lease.due(process.database(), job_id=job.claim.job_id)
        send_all(process.queue().publish, process.database(), due)


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
