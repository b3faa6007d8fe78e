"""The loop that keeps jobs moving: ``python -m tasks.housekeeping``.

Ends the attempts whose lease is over, cancels queued runs whose cancellation was set in Redis,
publishes again what no worker has taken, and has jobs say so whose queue has no worker. Each pass
is idempotent: any number of such processes may run.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import redis
import structlog

from tasks import by_hand, process, staging
from tasks.broker_keys import SENTINEL
from tasks.figures import figures_of, left_in_place
from tasks.slow_duties import SlowDuties
from tasks.unserved import Unserved
from tasks.upload import not_sent
from trainer_app import artifacts
from trainer_app import log as logs
from trainer_app.errors import Unavailable
from trainer_app.folders import check_folders, remember_roots
from trainer_app.log import JobLog, job_log_path, last_events
from trainer_app.queue import heartbeat_key, send_all, shared_queues, waiting_since
from trainer_app.store import idempotency, lease, requests, upkeep, wakeups
from trainer_app.store.lease import Reaped, Wakeup

_PASS_SECONDS: Final = 2.0
_SLOW_SECONDS: Final = 5.0  # for an upload to notice the end
_AWAY_SECONDS: Final = 10.0  # between two passes, where the next comes after 2; at the least
_JUMP_SECONDS: Final = 1.0  # that the database's clock goes on by, and this machine's does not
# For a worker to give up a database that did not answer, and to ask it once more.
_RETURN_SECONDS: Final = 5.0
_LAST_WORDS: Final = 3  # lines of its log that the message of a failed job has
_SENDING: Final = "sending"  # the value of the sentinel until all that is queued was sent
_SENT: Final = "1"
_STOPS: Final = frozenset({signal.SIGTERM, signal.SIGINT})

_log = structlog.get_logger(__name__)


def reap(*, as_of: float | None = None) -> None:
    """End the attempts whose lease is over; log and announce what became of their jobs.

    ``as_of``: as ``upkeep.reap`` has it.
    """
    settings = process.settings()
    problem = not_sent(settings)
    taken: list[Path] = []
    reaped = lease.reap(
        process.database(),
        max_crashes=settings.jobs.max_crashes,
        as_of=as_of,
        fence=lambda job_id, attempt: taken.extend(staging.take_away(settings, job_id, attempt)),
        left_in_place=lambda run_id: left_in_place(
            artifacts.model_directory(settings, run_id), run_id
        ),
        not_sent=None if problem is None else problem.message,
    )
    for one in reaped:
        try:
            _tell(_explained(one))
        except Exception:  # the others, which are as final, are not to go untold by it
            _log.exception("what became of a job was not told", job_id=one.job_id)
    for path in taken:
        shutil.rmtree(path, ignore_errors=True)


class Reaper:
    """Reaps in each pass, but gives workers that may have been away the time to come back.

    A machine that sleeps, a database that does not answer or cannot be written to, and one whose
    clock is set ahead, end every lease at once: whoever asks first would decide. It is the
    database's clock that is looked at, wherever that runs: leases are given by no other.

    Those whose process is known to be dead get no time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: this machine's, in seconds, which nobody sets."""
        self._clock = clock
        self._last: float | None = None  # reading of the database's clock
        self._asked_at = 0.0  # for it
        self._is_due = False  # the time to come back, at the next pass that reaches the database
        self._not_before = 0.0  # a lease that has run out is ended, by the database's clock

    def one_pass(self) -> None:
        """End the leases that are over. Raises Unavailable."""
        asked_at = self._clock()
        try:
            now = process.database().now()
            is_due = self._is_due or self._may_have_been_away(now)
        except Unavailable:
            # Begun while it is away: the workers have missed beats as well.
            self._is_due = self._is_due or self._last is None
            raise
        if is_due:
            self._not_before = self._grace_from(now)
        elif self._last is not None and now < self._last:
            # The clock was set back: what was put off by it before it was right is not due then.
            self._not_before = min(self._not_before, self._grace_from(now))
        self._last, self._asked_at, self._is_due = now, asked_at, False
        try:
            # As of this reading: one that is set ahead from now on ends no lease before it is seen.
            reap(as_of=now if now >= self._not_before else upkeep.EXPIRED)
        except Unavailable:
            # It can be read, but is locked, or its disk is full: no beat was written either.
            self._is_due = True
            raise

    def _may_have_been_away(self, now: float) -> bool:
        """Whether workers may have lost their leases for no reason of theirs."""
        if self._last is None:
            # No reading before this one. What has just been heard of is not dead.
            return _is_heard_of(upkeep.run_out(process.database(), as_of=now))
        passed = now - self._last
        # Whoever was away for half a lease alone has not lost it. Not less where leases are long:
        # a pass over a slow network takes more than ten seconds, and each would be due then.
        away = max(_AWAY_SECONDS, process.settings().jobs.lease_seconds / 2)
        # The most that the answers' ways can account for.
        return passed > min(away, self._clock() - self._asked_at + _JUMP_SECONDS)

    def _grace_from(self, now: float) -> float:
        """When the workers' next beat was due, and had the time to be written."""
        return now + process.settings().jobs.beat_seconds + _RETURN_SECONDS


def _is_heard_of(job_ids: Sequence[str]) -> bool:
    """Whether the holder of one of these jobs has told Redis within a lease that it lives.

    Redis measures that by its own clock.
    """
    try:
        keys = [heartbeat_key(job_id) for job_id in job_ids]
        return bool(keys) and bool(process.redis_client().exists(*keys))
    except (redis.RedisError, OSError):
        return False


def _explained(reaped: Reaped) -> Reaped:
    """With the last words of its log, where a job has failed: whatever took its workers down."""
    if reaped.status != "failed":
        return reaped
    said = last_events(job_log_path(process.settings(), reaped.job_id), _LAST_WORDS)
    if not said:
        return reaped
    message = f"{reaped.message}; its log ends with: {' | '.join(said)}"
    with suppress(Unavailable):  # the rest is to be told all the same
        upkeep.explain(process.database(), reaped, message)
    return replace(reaped, message=message)


def _tell(reaped: Reaped) -> None:
    _log.warning(reaped.message, job_id=reaped.job_id, status=reaped.status)
    log = JobLog(
        job_log_path(process.settings(), reaped.job_id),
        run_id=reaped.run_id or reaped.job_id,
        attempt=reaped.attempt,
        request_id=reaped.request_id,
    )
    log.warning(reaped.message, status=reaped.status)
    log.close()
    if reaped.status != "queued":
        events = process.job_events(
            reaped.kind, job_id=reaped.job_id, user_id=reaped.user_id, queue_name=reaped.queue
        )
        if reaped.result is not None:
            final = artifacts.model_directory(process.settings(), reaped.job_id)
            figures = figures_of(reaped.result, final)
            events.completed(result_id=reaped.job_id, result_bytes=figures.result_bytes)
            events.metrics_completed(figures.final_metrics)
        elif reaped.status == "cancelled":
            events.failed("user", "cancelled")
        else:
            events.failed("system", reaped.message)


def dispatch() -> bool:
    """Publish the queued jobs that are due: all of them once Redis has lost its data, else those
    that were published too long ago for nothing to have come of it, and do not wait in its lists.

    Returns whether Redis took them all. Nothing is reaped while one that hangs is waited for.
    """
    client = process.redis_client()
    try:
        process.broker_keys().set_right(client, shared_queues(process.settings()))
        wiped = _is_wiped(client)
        if wiped:
            # Whoever is killed half-way leaves the rest to the next pass.
            client.set(SENTINEL, _SENDING)
        due = lease.due(process.database(), all_queued=True) if wiped else _lost(client)
        if not send_all(process.queue().publish, process.database(), due):
            return False
        if wiped:
            # Not where Redis was wiped again since: what was sent before is gone.
            client.set(SENTINEL, _SENT, xx=True)
    except (redis.RedisError, OSError):
        _log.debug("nothing can be published while Redis is away")
        return False
    return True


def _is_wiped(client: redis.Redis) -> bool:
    """Whether Redis has lost its data; not where the key that tells cannot be read."""
    try:
        return client.get(SENTINEL) != _SENT
    except redis.ResponseError:
        return False


def _lost(client: redis.Redis) -> list[Wakeup]:
    """The jobs to publish while Redis has its data: those whose call does not wait there."""
    lines = wakeups.unanswered(process.database())
    if not lines:  # nobody is to wait for the right to write
        return []
    return lease.due(process.database(), lines=lines, waiting=waiting_since(client, lines))


def purge() -> None:
    """Forget the results of requests that nobody will ask for any more."""
    jobs = process.settings().jobs
    requests.purge(
        process.database(),
        completed_seconds=jobs.result_ttl_seconds,
        failed_seconds=jobs.failure_ttl_seconds,
    )
    idempotency.purge(process.database(), older_than_seconds=jobs.failure_ttl_seconds)


def run(stop: threading.Event) -> None:
    """Pass after pass until ``stop`` is set; a database that is away is waited for."""
    process.database()  # one for both threads
    slow = threading.Thread(target=SlowDuties().run, args=(stop,), name="slow duties", daemon=True)
    slow.start()
    reaper, unserved = Reaper(), Unserved()

    def send() -> None:
        # A pass that waits for a Redis that hangs once more would take so long that the reaper,
        # with a database that is late as well, took the workers for away, and reaped nothing.
        unserved.redis_answers = True  # where this fails for another reason
        unserved.redis_answers = dispatch()

    duties = (reaper.one_pass, by_hand.heed_queued, send, unserved.one_pass, purge)
    while not stop.is_set():
        for duty in duties:
            try:
                duty()
            except Unavailable as error:
                _log.warning("the database is away", error=str(error))
            except Exception:  # the other duties, and the next pass, are not to suffer by it
                _log.exception("a duty failed", duty=duty.__name__)
        stop.wait(_PASS_SECONDS)
    slow.join(_SLOW_SECONDS)


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    check_folders(process.settings())
    remember_roots(process.settings())
    logs.configure(process.settings())
    stop = threading.Event()

    def wait_for_a_signal() -> None:
        signal.sigwait(_STOPS)
        stop.set()

    # No handler: it would run in the thread that waits for the event, which may hold its lock.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    threading.Thread(target=wait_for_a_signal, name="signals", daemon=True).start()
    run(stop)
    process.publisher().close()


if __name__ == "__main__":
    main()
