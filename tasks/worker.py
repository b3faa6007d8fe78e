"""What a worker does beside its tasks, in its parent process and in its child.

Parent: says that it lives, watches over its child, keeps a spare one where it trains, and tells it
to hand its job back when it shuts down. Child: a SIGTERM, which may be meant for the whole process
group, hands its job back, too, and ends it then; so does a failure that may be the child's own, and
memory that has grown.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Final, Protocol

import redis
import structlog
from celery.signals import (
    celeryd_after_setup,
    celeryd_init,
    setup_logging,
    task_postrun,
    task_prerun,
    worker_process_init,
    worker_ready,
    worker_shutting_down,
)
from celery.worker import state

from tasks import process
from tasks.app import app
from tasks.flag import Flag
from tasks.held import draining
from tasks.memory import device_bytes
from tasks.owner import node
from tasks.spare import spares
from tasks.watchdog import Watchdog
from trainer_app import log as logs
from trainer_app.core.sums import ALGORITHMS
from trainer_app.errors import SettingsError, Unavailable
from trainer_app.folders import check_folders, remember_roots
from trainer_app.queue import WORKER_KEY, WORKER_TTL_SECONDS

_BEAT_SECONDS: Final = WORKER_TTL_SECONDS / 4
_WATCH_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 0.2  # between two looks whether the worker shuts down
_DRAIN_SIGNAL: Final = signal.SIGUSR2  # SIGUSR1 is Celery's soft time limit
_LEAVE_SECONDS: Final = 1.0  # for what a task returned to reach the parent, before its child ends


class Pool(Protocol):
    """Celery's pool, as far as it is used here."""

    info: Mapping[str, Sequence[int]]  # "processes": the children's pids

    def unheard(self) -> frozenset[int]:
        """The pids of those that have told what Celery has not read yet."""


class Worker(Protocol):
    """Celery's worker, as far as it is used here."""

    hostname: str  # the node's name, such as train-0@host
    pool: Pool


class Request(Protocol):
    """A task that Celery has given to a child, as far as it is used here."""

    args: Sequence[str]  # the job's id
    worker_pid: int | None  # None: no child has taken it yet


_log = structlog.get_logger(__name__)
_stopping: Final = Flag()
_workers: list[Worker] = []


@setup_logging.connect
def set_up_logging(**_: object) -> None:
    """Use our log form in place of Celery's."""
    logs.configure(process.settings())


@celeryd_init.connect
def refuse_unfit_folders(**_: object) -> None:
    """Stop the start where a folder of the settings cannot serve; else know them again."""
    try:
        check_folders(process.settings())
        remember_roots(process.settings())
    except SettingsError as error:  # of any other exception Celery makes a line in the log
        raise SystemExit(f"error: {error.message}") from error


@celeryd_init.connect
def be_gentle_to_a_busy_machine(**_: object) -> None:
    """Let the child's OpenMP threads sleep rather than spin for long when they wait.

    Whatever else runs takes a core from one thread, and the others spin until it comes back: two
    threads on two busy cores trained a small model at 1,000 tokens/s, and at 5,000 with this.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@celeryd_after_setup.connect
def remember_the_worker(instance: Worker, **_: object) -> None:
    """Keep the worker, whose pool knows its children."""
    _workers[:] = [instance]


@celeryd_after_setup.connect
def tell_spares_what_for(**_: object) -> None:
    """Let no process of a worker that trains nothing import what only training needs."""
    spares.train = _trains()


@celeryd_after_setup.connect
def set_its_queues_right(**_: object) -> None:
    """Let this worker start where somebody has made something else of a key that it needs."""
    try:
        process.broker_keys().set_right(process.redis_client(), _queues())
    except (redis.RedisError, OSError) as error:
        _log.warning("Redis is away", error=str(error))


def _trains() -> bool:
    return process.settings().jobs.queue_name in app.amqp.queues.consume_from


def _queues() -> list[str]:
    return [queue.name for queue in app.amqp.queues.consume_from.values()]


@worker_ready.connect
def start_to_beat(**_: object) -> None:
    """Let the API know that this worker lives, from a thread, until it stops."""
    threading.Thread(
        target=_beat, args=(_workers[0].hostname, _queues()), name="worker-beat", daemon=True
    ).start()
    threading.Thread(target=_watch, args=(_workers[0],), name="watchdog", daemon=True).start()


def _watch(worker: Worker) -> None:
    """Look after the children until the process ends: those that do not drain are its work too."""
    jobs = process.settings().jobs
    # A child waits for a lease's time twice (tasks/perform.py), and the last try takes a while.
    watchdog = Watchdog(
        process.database(), node(worker.hostname), claim_seconds=3 * jobs.lease_seconds
    )
    busy = partial(_busy, worker.pool)
    # Whoever trains is worth the memory: other jobs are short.
    keeps_a_spare = jobs.spare_seconds > 0 and _trains()
    while True:
        time.sleep(_WATCH_SECONDS)
        if keeps_a_spare and not _stopping.is_set():
            try:
                spares.keep(after_seconds=jobs.spare_seconds)
            except OSError as error:  # no process, memory or file is to be had now
                _log.warning("no spare process could be started", error=str(error))
        try:
            watchdog.look(busy, draining=_stopping.is_set())
        except Unavailable as error:
            _log.warning("the database is away", error=str(error))
        except RuntimeError:  # the set changed while it was copied
            _log.debug("no look at the children this time")
        except Exception:  # nobody else looks: it goes on, whatever this was
            _log.exception("a look at the children failed")


def _busy(pool: Pool) -> dict[int, str]:
    """The job that each child is at, by pid; raises RuntimeError where the set changes.

    While Celery waits for its broker, a request stays there that its child has left: what it has
    told since it took the request is that. What hangs before it can tell so is busy.
    """
    left = pool.unheard()  # first: what is read from now on is no request any more
    requests: list[Request] = list(state.active_requests)
    return {
        one.worker_pid: one.args[0]
        for one in requests
        if one.worker_pid is not None and one.worker_pid not in left
    }


def _beat(hostname: str, queues: Sequence[str]) -> None:
    key = f"{WORKER_KEY}{hostname}"
    told = {
        "queues": list(queues),
        "memory_bytes": device_bytes(os.environ),
        "reads_sums": list(ALGORITHMS),
    }
    value = json.dumps(told)
    due_at = time.monotonic()
    while not _stopping.is_set():
        if time.monotonic() >= due_at:
            try:
                process.redis_client().set(key, value, ex=WORKER_TTL_SECONDS)
                process.broker_keys().set_right(process.redis_client(), queues)
            except (redis.RedisError, OSError) as error:
                _log.warning("Redis is away", error=str(error))
            except Exception:  # without this thread the worker would count as dead
                _log.exception("the worker could not say that it lives")
            due_at = time.monotonic() + _BEAT_SECONDS
        time.sleep(_STOP_SECONDS)
    try:
        process.redis_client().delete(key)
    except (redis.RedisError, OSError):
        _log.debug("the worker's key was left to expire")


@worker_shutting_down.connect
def drain(**_: object) -> None:
    """Tell the child to hand its job back, so that the shutdown need not wait for its end."""
    _stopping.set()
    for worker in _workers:
        # Celery's own process of the pool alone: spawning has helpers of its own beside it.
        for pid in worker.pool.info["processes"]:
            with suppress(ProcessLookupError):  # an idle one ends at the group's SIGTERM
                os.kill(pid, _DRAIN_SIGNAL)


@worker_process_init.connect
def prepare_the_child(**_: object) -> None:
    """Know the worker, and listen for its order to hand back."""
    process.remember_the_worker()
    signal.signal(_DRAIN_SIGNAL, _termination.heed_the_worker)


class _Termination:
    """What asks a pool's child to end: its worker that shuts down, or a SIGTERM.

    The pool sets a handler of SIGTERM after worker_process_init, which ends the child on the spot:
    right for an idle one, a lost worker for one at work. That one drains and ends after its task.
    """

    def __init__(self) -> None:
        self._worker_stops = False
        self._asked = False
        self._before: Callable[[int, FrameType | None], object] | int | None = signal.SIG_DFL

    def heed_the_worker(self, _number: int, _frame: FrameType | None) -> None:
        """Hand back what runs; the worker lets its child end."""
        self._worker_stops = True
        draining.set()

    def heed(self) -> None:
        """From now on a SIGTERM drains."""
        self._before = signal.signal(signal.SIGTERM, self._drain)

    def leave(self) -> None:
        """From now on a SIGTERM ends the child, as does one that has come before.

        Raises SystemExit where the worker goes on, which would have the child take the same job
        again; and where the child is spent. A worker that shuts down has no more to give, but may
        wait for its child's end; it would report a lost job if the child ended before the task has.
        """
        signal.signal(signal.SIGTERM, self._before)
        if self._worker_stops:
            if self._asked:
                timer = threading.Timer(_LEAVE_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
                timer.daemon = True
                timer.start()
            return
        if process.spent.is_set():
            _log.warning("this process is spent: it ends, a fresh one takes over")
        if self._asked or process.spent.is_set():
            process.tell_the_rest()  # the pool waits for no thread
            raise SystemExit

    def _drain(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        draining.set()


_termination: Final = _Termination()


@task_prerun.connect
def heed_a_termination(**_: object) -> None:
    """Take a SIGTERM as the order to hand the job back."""
    _termination.heed()


@task_postrun.connect
def leave_after_a_termination(**_: object) -> None:
    """End the child if there was one, or if it is spent."""
    _termination.leave()
