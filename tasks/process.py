"""What one worker process has once: made on first use, so that importing a task opens nothing."""

from __future__ import annotations

import os
import threading
from functools import cache
from typing import Final

import redis

from tasks.broker_keys import BrokerKeys
from tasks.growth import Growth
from trainer_app import events
from trainer_app.queue import Queue
from trainer_app.settings import Settings, load_settings
from trainer_app.store.database import Database
from trainer_app.store.tables import JobKind

_worker: Final[list[int]] = []  # of this process
# Set once a job has failed for a reason that may lie in this process (descriptors that leak, an
# error that CUDA does not get over), or has left too much memory taken: it ends after the job, and
# a fresh one takes the next.
spent: Final = threading.Event()


def remember_the_worker() -> None:
    """The process that has started this one, a child of its pool, is its worker."""
    _worker[:] = [os.getppid()]


def is_orphaned() -> bool:
    """Whether the worker has died: another one is about to take up its jobs."""
    return bool(_worker) and os.getppid() not in _worker


@cache
def settings() -> Settings:
    """The settings of this process."""
    return load_settings()


@cache
def database() -> Database:
    """The database, with connections of this process alone."""
    return Database(settings().database_url)


@cache
def redis_client() -> redis.Redis:
    """Redis, for what may be lost."""
    return events.connect(settings())


@cache
def broker_keys() -> BrokerKeys:
    """What is known of the keys that calls come through."""
    return BrokerKeys()


@cache
def publisher() -> events.Publisher:
    """The thread that sends events."""
    return events.Publisher(redis_client())


def tell_the_rest() -> None:
    """Send the events that wait, for a few seconds at most: this process is about to end."""
    if publisher.cache_info().currsize:
        publisher().close()


def job_events(kind: JobKind, *, job_id: str, user_id: int, queue_name: str) -> events.JobEvents:
    """Tells followers of a run; of other jobs, which they did not ask for, nobody."""
    told = publisher() if kind is JobKind.TRAIN else None
    return events.JobEvents(told, job_id=job_id, user_id=user_id, queue_name=queue_name)


@cache
def growth() -> Growth:
    """How the memory of this process has grown."""
    return Growth()


@cache
def queue() -> Queue:
    """The sender of wake-up calls."""
    return Queue(settings())
