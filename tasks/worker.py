"""What a worker does beside its tasks, in its parent process and in its child.

Parent: says that it lives, ends the lease of a child that died, and tells the child to hand its
job back when it shuts down. Child: imports the engine before the first job arrives.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import FrameType
from typing import Final, Protocol

import redis
import structlog
from billiard.exceptions import WorkerLostError
from celery.signals import (
    celeryd_after_setup,
    setup_logging,
    task_failure,
    worker_process_init,
    worker_ready,
    worker_shutting_down,
)

from tasks import process
from tasks.app import app
from tasks.held import draining
from tasks.shells import WORK
from trainer_app import log as logs
from trainer_app.errors import Unavailable
from trainer_app.queue import WORKER_KEY, WORKER_TTL_SECONDS
from trainer_app.store import lease

_BEAT_SECONDS: Final = WORKER_TTL_SECONDS / 4
_DRAIN_SIGNAL: Final = signal.SIGUSR2  # SIGUSR1 is Celery's soft time limit


class Pool(Protocol):
    """Celery's pool, as far as it is used here."""

    info: Mapping[str, Sequence[int]]  # "processes": the children's pids


class Worker(Protocol):
    """Celery's worker, as far as it is used here."""

    hostname: str  # the node's name, such as train-0@host
    pool: Pool


_log = structlog.get_logger(__name__)
_stopping = threading.Event()
_workers: list[Worker] = []


@setup_logging.connect
def set_up_logging(**_: object) -> None:
    """Use our log form in place of Celery's."""
    logs.configure(process.settings())


@celeryd_after_setup.connect
def remember_the_worker(instance: Worker, **_: object) -> None:
    """Keep the worker, whose pool knows its children."""
    _workers[:] = [instance]


@worker_ready.connect
def start_to_beat(**_: object) -> None:
    """Let the API know that this worker lives, from a thread, until it stops."""
    queues = [queue.name for queue in app.amqp.queues.consume_from.values()]
    threading.Thread(
        target=_beat, args=(_workers[0].hostname, queues), name="worker-beat", daemon=True
    ).start()


def _beat(hostname: str, queues: Sequence[str]) -> None:
    key, value = f"{WORKER_KEY}{hostname}", json.dumps(list(queues))
    while not _stopping.is_set():
        try:
            process.redis_client().set(key, value, ex=WORKER_TTL_SECONDS)
        except (redis.RedisError, OSError) as error:
            _log.warning("Redis is away", error=str(error))
        _stopping.wait(_BEAT_SECONDS)
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
            os.kill(pid, _DRAIN_SIGNAL)


@task_failure.connect
def end_the_lease_of_a_dead_child(
    exception: BaseException, args: Sequence[str], **_: object
) -> None:
    """Give a job whose child was killed back at once, rather than when its lease is over."""
    if not isinstance(exception, WorkerLostError) or not _workers:
        return
    job_id = args[0]
    try:
        lease.expire(process.database(), job_id, owner_prefix=f"{_workers[0].hostname}:")
    except Unavailable as error:
        _log.warning("the lease will run out by itself", job_id=job_id, error=str(error))


@worker_process_init.connect
def prepare_the_child(**_: object) -> None:
    """Import all that a job needs, and listen for the order to hand back."""
    logs.configure(process.settings())
    signal.signal(_DRAIN_SIGNAL, _start_to_drain)
    for module in WORK.values():
        import_module(module)


def _start_to_drain(_number: int, _frame: FrameType | None) -> None:
    draining.set()
