"""A job while this process holds its lease.

A thread keeps the lease alive, looks for a cancellation, and for the death of the worker that
this child belongs to; another one, which waits for nobody, notices when the process as a whole has
slept, and when nobody answers. The job's loop asks ``should_stop`` between two steps.

A job that does not heed a stop is interrupted after INTERRUPT_SECONDS, and after STUCK_SECONDS its
process ends. One that is to keep a checkpoint for its next attempt is not interrupted, and gets
longer: DRAIN_SECONDS where its worker shuts down, PAUSE_SECONDS where nobody is in a hurry. A
process that is frozen as a whole is ended by its worker: see tasks/watchdog.py.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Final, Self

import redis
import structlog

from tasks.contact import Contact
from tasks.flag import Flag
from tasks.news import News
from tasks.sleep import Sleep, lasting_clock
from trainer_app.core.observer import (
    CheckpointReport,
    EvaluationReport,
    StartReport,
    StepReport,
    StopReason,
)
from trainer_app.core.stopping import StopRequested
from trainer_app.errors import LeaseLost, Unavailable
from trainer_app.settings import Jobs
from trainer_app.store import lease, pauses
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim

# Set by the signal handler when the worker shuts down: the job is to be handed back.
draining: Final = Flag()

_TICK_SECONDS: Final = 0.2
_LOOK_SECONDS: Final = 1.0  # between two looks for a cancellation in the database
_NEWS_SECONDS: Final = 0.4  # between two looks into Redis
_REDIS_PAUSE_SECONDS: Final = 5.0  # after Redis failed
INTERRUPT_SECONDS: Final = 10.0  # for a job to stop before the stop is raised in it
STUCK_SECONDS: Final = 20.0  # for a job to stop before its process ends
# The stack kills it after 26 s (stack/supervisor.py), and there is something to write down before.
DRAIN_SECONDS: Final = 22.5
PAUSE_SECONDS: Final = 600.0
_LAST_WORDS_SECONDS: Final = 3.0  # to write down why, before that
_INTERRUPT: Final = signal.SIGALRM

_log = structlog.get_logger(__name__)


class Held:
    """Holds the lease of one claimed job while its ``with`` block runs.

    It is to be the first observer of a run: what an attempt has to tell that lost its lease, those
    after it do not hear.
    """

    def __init__(
        self,
        database: Database,
        client: redis.Redis,
        jobs: Jobs,
        claim: Claim,
        *,
        say: Callable[[str], object] = lambda _message: None,
        on_stuck: Callable[[StopReason], object] = lambda _reason: None,
        is_orphaned: Callable[[], bool] = lambda: False,
        end_process: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = time.monotonic,
        lasting_clock: Callable[[], float] = lasting_clock,
        since: tuple[float, float] | None = None,
    ) -> None:
        """``say`` tells the job's user what happens to its lease.

        ``since``: just before the claim, by both clocks; None: now.

        ``on_stuck`` is the last that this process does for a job that does not stop.

        ``is_orphaned``: whether the worker that this process belongs to has died.
        """
        self.claim = claim
        self._database = database
        self._news = News(client, claim, lease_seconds=jobs.lease_seconds)
        self._jobs = jobs
        self._say = say
        self._on_stuck = on_stuck
        self._end_process = end_process
        self._clock = clock
        self._lasting_clock = lasting_clock
        self._is_orphaned = is_orphaned
        self.ended = False  # the job, for good
        self._left = threading.Event()  # the ``with`` block
        self._reason: StopReason | None = None
        self._heard = False  # the wish in Redis to cancel the job
        self._at_work = False
        self._interrupt_at = float("inf")
        self._must_end_by = float("inf")
        started, started_lasting = since or (self._clock(), lasting_clock())
        self._times_out_at = started + jobs.timeout_seconds
        self._beat_at = started + jobs.beat_seconds
        self._look_at = started
        self._news_at = started
        self._asked_at = started
        self._sleep = Sleep((started, started_lasting), longest=jobs.lease_seconds)
        self._renewed_at = started  # the lease; that the database is away is no reason to doubt it
        self._contact = Contact(since=started, lease_seconds=jobs.lease_seconds, say=say)
        self._away_since: float | None = None  # the database
        self._threads = [
            threading.Thread(target=self._watch, name="lease", daemon=True),
            threading.Thread(target=self._stay_awake, name="awake", daemon=True),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.set()
        for thread in self._threads:
            thread.join()
        if self._reason is StopReason.FENCED:
            return  # the keys are another attempt's by now
        try:
            self._news.end(is_over=self.ended)
        except (redis.RedisError, OSError):
            _log.debug("a heartbeat was left to expire", job_id=self.claim.job_id)

    def on_message(self, message: str) -> None:
        """Raises StopRequested when the lease is lost, like all that follow."""
        del message
        self.confirm()

    def on_start(self, start: StartReport) -> None:
        del start
        self.confirm()

    def on_steps(self, steps: Sequence[StepReport]) -> None:
        del steps
        self.confirm()

    def on_evaluation(self, evaluation: EvaluationReport) -> None:
        del evaluation
        self.confirm()

    def on_checkpoint(self, checkpoint: CheckpointReport) -> None:
        del checkpoint
        self.confirm()

    def should_stop(self) -> StopReason | None:
        """Why the job is to stop now, if it is; waits while nobody can tell whose the job is."""
        while self._contact.is_lost and self._reason is None:
            self._look_at_the_worker(self._clock())  # the other thread waits for answers
            time.sleep(_TICK_SECONDS)
            self._asked_at = self._clock()
        return self._answer()

    def _answer(self) -> StopReason | None:
        now = self._clock()
        # Not in should_stop alone: of a long step the reports come before it.
        self._contact.stepped(now, now - self._asked_at)
        # A lease is renewed long before it has only half of its time left: whoever was away for
        # less still has it. Whoever slept for longer asks before it does anything more.
        self._sleep.notice(now, self._lasting_clock())
        if self._sleep.unsettled or now - self._asked_at > self._jobs.lease_seconds / 2:
            self._look_after_sleep()
        self._asked_at = self._clock()  # without what the answer took
        return self._reason

    @property
    def is_cut_off(self) -> bool:
        """Whether ``should_stop`` would wait now."""
        return self._contact.is_lost

    @property
    def is_to_stop(self) -> bool:
        """Whether the job was asked to, as far as this process has heard."""
        return self._reason is not None

    def stop(self, reason: StopReason) -> None:
        """Ask the job's loop to stop; a lost lease overrides all else."""
        now = self._clock()
        patience = {StopReason.DRAIN: DRAIN_SECONDS, StopReason.PAUSE: PAUSE_SECONDS}
        # Whoever is in more of a hurry than the one before is heard, too.
        self._must_end_by = min(self._must_end_by, now + patience.get(reason, STUCK_SECONDS))
        # A checkpoint that is being written for the next attempt is better finished.
        if reason not in patience:
            self._interrupt_at = min(self._interrupt_at, now + INTERRUPT_SECONDS)
        if self._reason is None or reason is StopReason.FENCED:
            self._reason = reason

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise StopRequested in the block, once, if it does not heed a stop in time.

        Whatever the main thread waits for then is left, but code outside of Python's reach. The end
        of a block within another ends both: what comes after it is not interrupted any more.
        """

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            if self._at_work and self._reason is not None:
                self._at_work = False
                raise StopRequested(self._reason)

        # Left in place afterwards: the signal may come late, and its default ends the process.
        signal.signal(_INTERRUPT, interrupt)
        self._at_work = True
        try:
            yield
        finally:
            self._at_work = False

    def _watch(self) -> None:
        while not self._left.wait(_TICK_SECONDS):
            now = self._clock()
            if now > self._interrupt_at and self._at_work:
                self._interrupt_at = float("inf")
                signal.pthread_kill(threading.main_thread().ident or 0, _INTERRUPT)
            if now > self._must_end_by:
                self._end_stuck()
                return
            for look in (
                self._look_at_the_worker,
                self._look_at_the_row,
                self._look_at_the_news,
            ):
                try:
                    look(now)
                except Exception:  # without this thread the lease would end, and no stop be heard
                    _log.exception("a look failed", job_id=self.claim.job_id)
                    self._doubt_the_lease()
                    self._left.wait(_LOOK_SECONDS)

    def _doubt_the_lease(self) -> None:
        """For a reason that nobody knows the lease is not renewed: once it is over, ask."""
        if self._clock() - self._renewed_at > self._jobs.lease_seconds:
            self._sleep.unsettled = True

    def _end_stuck(self) -> None:
        _log.error("the job did not stop: its process ends", job_id=self.claim.job_id)
        # From a thread, with a limit: the database may be what does not answer.
        last_words = threading.Thread(target=self._on_stuck, args=(self._reason,), daemon=True)
        last_words.start()
        last_words.join(_LAST_WORDS_SECONDS)
        self._end_process(1)

    def _look_at_the_worker(self, now: float) -> None:
        if self._is_orphaned():
            # The worker was killed: hand the job back, and outlive it by little.
            self.stop(StopReason.DRAIN)
        if draining.is_set():
            self.stop(StopReason.DRAIN)
        if now > self._times_out_at:
            self.stop(StopReason.TIMEOUT)

    def excuse(self, seconds: float) -> None:
        """Let it take so much longer before it has timed out: it could do nothing meanwhile."""
        self._times_out_at += seconds

    def confirm(self) -> None:
        """Raise StopRequested when the lease is lost: what follows is no longer this attempt's."""
        if self._answer() is StopReason.FENCED:
            raise StopRequested(StopReason.FENCED)

    def _stay_awake(self) -> None:
        """Give signs of life, however long a step takes and a database does not answer."""
        while not self._left.wait(_TICK_SECONDS):
            self._sleep.notice(self._clock(), self._lasting_clock())
            try:
                # Who slept is silent: see _look_at_the_row. Who is to stop does not go on.
                self._contact.look(
                    self._clock(), silent=self._sleep.unsettled or self._reason is not None
                )
            except Exception:  # as in _watch
                _log.exception("no conclusion was drawn", job_id=self.claim.job_id)

    def _look_after_sleep(self) -> None:
        """Ask whether the lease still stands.

        Without an answer, who slept for less than the lease goes on. For anybody else it is over,
        and another attempt may be at work: they wait, and write nothing if they are to stop.
        """
        while True:
            try:
                lease.cancel_requested(self._database, self.claim)
            except LeaseLost:
                self.stop(StopReason.FENCED)
            except Unavailable as error:
                _log.warning("the database is away", job_id=self.claim.job_id, error=str(error))
            else:
                self._sleep.unsettled = False
            if not self._sleep.unsettled:
                return
            if self._reason is not None:
                self.stop(StopReason.FENCED)
                return
            time.sleep(_LOOK_SECONDS)

    def _look_at_the_row(self, now: float) -> None:
        if now < min(self._beat_at, self._look_at):
            return
        try:
            if now >= self._beat_at:
                cancelled = lease.beat(
                    self._database, self.claim, lease_seconds=self._jobs.lease_seconds
                )
                self._beat_at = now + self._jobs.beat_seconds
                self._renewed_at = self._contact.beaten_at = now
            else:
                cancelled = lease.cancel_requested(self._database, self.claim)
            paused = pauses.pause_requested(self._database, self.claim)
        except LeaseLost:
            self.stop(StopReason.FENCED)
        except Unavailable as error:
            # Whoever writes next finds out whether the lease still stands: work goes on.
            _log.warning("the database is away", job_id=self.claim.job_id, error=str(error))
            self._renewed_at = now
            self._contact.database_answers = False
            # Who slept is silent: the job's log may be another attempt's by now.
            if self._away_since is None and not self._sleep.unsettled:
                self._away_since = now
                self._say("the database is away: the work goes on")
        else:
            self._contact.database_answers = True
            if self._away_since is not None:
                self._say(f"the database is back after {self._clock() - self._away_since:.0f} s")
                self._away_since = None
            if cancelled:
                self.stop(StopReason.CANCEL)
            elif paused:
                self.stop(StopReason.PAUSE)
        self._look_at = self._clock() + _LOOK_SECONDS

    def _look_at_the_news(self, now: float) -> None:
        """What is told and heard through Redis: tasks/news.py."""
        if now < self._news_at or self._reason is StopReason.FENCED:
            return
        try:
            heard = self._news.exchange()
            if heard.later_attempt is not None:
                self._look_for(heard.later_attempt)
            wish = None if self._heard else heard.wish
            # Also of a job that is to stop for another reason: it is not to be queued again.
            if wish is not None and self._news.heed(self._database, wish):
                self._heard = True
                self.stop(StopReason.CANCEL)
        except LeaseLost:
            self.stop(StopReason.FENCED)
        except (redis.RedisError, OSError, Unavailable) as error:
            _log.debug("Redis is away", job_id=self.claim.job_id, error=str(error))
            self._contact.redis_answers = isinstance(error, Unavailable)  # which the database is
            pause = _LOOK_SECONDS if self.is_cut_off else _REDIS_PAUSE_SECONDS
            self._news_at = self._clock() + pause
        else:
            # Not before it is known what a later attempt means: the work would go on.
            self._contact.redis_answers = True
            self._news_at = self._clock() + _NEWS_SECONDS

    def _look_for(self, later_attempt: int) -> None:
        """Whether the job is another attempt's by now, as Redis has it. Raises LeaseLost."""
        try:
            lease.cancel_requested(self._database, self.claim)
        except Unavailable:
            if not self._contact.may_be_over(self._clock()):
                return  # none can have begun yet: somebody has made a mistake in Redis
            # Away for this process alone, it seems: it has given the job to another.
            _log.warning(
                "another attempt has begun, and the database is away",
                job_id=self.claim.job_id,
                later_attempt=later_attempt,
            )
            self.stop(StopReason.FENCED)
        else:
            self._news.refute(later_attempt)
