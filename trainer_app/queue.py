"""Wake-up calls for workers, and what is known of them through Redis.

The database owns the jobs: whatever is lost here is published again by the housekeeping. Tasks
are named, never imported, so that the web process needs no torch.
"""

from __future__ import annotations

import json
import uuid
from bisect import bisect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import redis
import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport.redis import PRIORITY_STEPS, Channel

from trainer_app import wishes
from trainer_app.core.sums import SHA256
from trainer_app.errors import Unavailable
from trainer_app.events import connect
from trainer_app.settings import Settings
from trainer_app.store import wakeups
from trainer_app.store.database import Database
from trainer_app.store.lease import JobKind, Wakeup
from trainer_app.store.wakeups import Line
from trainer_app.wishes import Wish

TASK_NAMES: Final[Mapping[JobKind, str]] = {
    JobKind.TRAIN: "trainer.train",
    JobKind.TOKENIZER: "trainer.tokenizer",
    JobKind.GENERATE: "trainer.generate",
    JobKind.SCORE: "trainer.score",
    JobKind.EVALUATE: "trainer.evaluate",
    JobKind.CHAT: "trainer.chat",
}
WORKER_KEY: Final = "trainer:worker:"  # + node name; lives as long as its worker
WORKER_TTL_SECONDS: Final = 20
LONG_TEXT: Final = 16_384  # characters to score: beyond it takes seconds, of a small model
_HIGHEST_PRIORITY: Final = 9
_DISPATCHED_AT: Final = "dispatched_at"  # the header of a wake-up call that says when

_log = structlog.get_logger(__name__)


def training_queue(settings: Settings) -> str:
    """The queue that every training worker takes from."""
    return settings.jobs.queue_name


def pinned_queue(settings: Settings, device: str) -> str:
    """The queue of one worker alone, such as ``trainer.HOST.gpu0``."""
    return f"{settings.jobs.queue_name}.{settings.host_id}.{device}"


def inference_queue(settings: Settings) -> str:
    """The queue of the workers that keep loaded models, for what somebody waits for."""
    return f"{settings.jobs.queue_name}.inference"


def light_queue(settings: Settings) -> str:
    """The queue of what takes a while but trains no model: tokenizers, evaluations, long scores."""
    return f"{settings.jobs.queue_name}.light"


def shared_queues(settings: Settings) -> tuple[str, ...]:
    """The queues that are no worker's own."""
    return training_queue(settings), inference_queue(settings), light_queue(settings)


def queue_of(settings: Settings, kind: JobKind, *, characters: int = 0) -> str:
    """The queue that a job of this kind goes to unless it is pinned to a worker.

    ``characters``: of the text that it reads. A chat is not to wait behind a long one.
    """
    if kind is JobKind.TRAIN:
        return training_queue(settings)
    takes_a_while = kind in {JobKind.TOKENIZER, JobKind.EVALUATE} or characters > LONG_TEXT
    return light_queue(settings) if takes_a_while else inference_queue(settings)


def heartbeat_key(run_id: str) -> str:
    """The Redis key that holds the unix time of a running job's last sign of life."""
    return f"runs:hb:{run_id}"


def attempt_key(job_id: str) -> str:
    """The Redis key that holds the newest attempt at a running job; the database decides."""
    return f"runs:{job_id}:attempt"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveWorker:
    """A worker that has given a sign of life within WORKER_TTL_SECONDS."""

    name: str
    queues: tuple[str, ...]
    memory_bytes: Mapping[str, int]  # by device, "cpu" and, where it sees one, "cuda"
    reads_sums: tuple[str, ...] = (SHA256,)  # of checkpoints: core/sums.py


def waiting_since(client: redis.Redis, lines: Collection[Line]) -> dict[Line, float]:
    """When the oldest wake-up call of each line was dispatched that no worker has taken yet.

    In unix seconds, by the database's clock. Without the lines where none waits, and those whose
    oldest one does not say, as those of the version before. Raises redis.RedisError, OSError.
    """
    with client.pipeline(transaction=False) as pipe:
        for line in lines:
            pipe.lindex(_list_of(line), -1)  # kombu puts them in at the head, and takes the last
        # A key that somebody has made something else of says nothing: that is of one list alone.
        oldest = pipe.execute(raise_on_error=False)
    dispatched = ((line, _dispatched_at(call)) for line, call in zip(lines, oldest, strict=True))
    return {line: at for line, at in dispatched if at is not None}


def _dispatched_at(call: object) -> float | None:
    if not isinstance(call, str):
        return None
    try:
        return float(json.loads(call)["headers"][_DISPATCHED_AT])
    except (ArithmeticError, ValueError, LookupError, TypeError, RecursionError):
        return None


def lists_of(queue: str) -> list[str]:
    """Where kombu keeps the messages of a queue: in four lists, the most urgent in the first."""
    return [f"{queue}{Channel.sep}{step}" if step else queue for step in PRIORITY_STEPS]


def _list_of(line: Line) -> str:
    """The one of them that the messages of this priority are in."""
    return lists_of(line.queue)[bisect(PRIORITY_STEPS, _sent_priority(line.priority)) - 1]


def _sent_priority(priority: int) -> int:
    """As kombu's Redis transport takes it: 0 for the most urgent."""
    return _HIGHEST_PRIORITY - priority


def send_all(publish: Callable[[Wakeup], bool], database: Database, due: Sequence[Wakeup]) -> bool:
    """Publish calls in their order, as ``Queue.publish`` does; whether Redis took them all.

    Ends at the first that cannot be sent, for each waits for a Redis that hangs; it and those after
    it are as due as before. Raises Unavailable where that cannot be written.
    """
    for number, wakeup in enumerate(due):
        if not publish(wakeup):
            wakeups.take_back(database, [one.job_id for one in due[number:]])
            return False
    return True


class Queue:
    """Publishes wake-up calls and knows the live workers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = connect(settings)
        self._celery = Celery("trainer", set_as_current=False)
        self._celery.config_from_object("celeryconfig")
        timeout = settings.redis.timeout_seconds
        self._celery.conf.update(
            broker_url=settings.redis.url,
            # A request must not wait for a hung Redis: the worker's patience is not for it.
            broker_transport_options={"socket_timeout": timeout, "socket_connect_timeout": timeout},
            broker_connection_timeout=timeout,
        )

    def publish(self, wakeup: Wakeup) -> bool:
        """Tell a worker of a queued job; False when Redis is away, which does no harm.

        The id is fresh each time: Celery silently discards an id that was once revoked.
        """
        if not self._settings.redis.enabled:
            return False
        try:
            self._celery.send_task(
                TASK_NAMES[wakeup.kind],
                args=[wakeup.job_id],
                queue=wakeup.queue,
                priority=_sent_priority(wakeup.priority),
                headers={_DISPATCHED_AT: wakeup.dispatched_at},
                task_id=str(uuid.uuid4()),
                retry=False,
                ignore_result=True,
            )
        except (OperationalError, redis.RedisError, OSError) as error:
            _log.warning("a wake-up call was not sent", job_id=wakeup.job_id, error=str(error))
            return False
        return True

    def ping(self) -> None:
        """Raise Unavailable unless Redis answers within the time-out."""
        if not self._settings.redis.enabled:
            raise Unavailable("Redis is switched off (REDIS__ENABLED=false)")
        try:
            self._redis.ping()
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer: {type(error).__name__}") from error

    def workers(self) -> list[LiveWorker]:
        """The live workers, by name; raises Unavailable when Redis is away."""
        try:
            keys = sorted(self._redis.scan_iter(match=f"{WORKER_KEY}*", count=1_000))
            values = self._redis.mget(keys) if keys else []
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer: {type(error).__name__}") from error
        found = [
            _worker(key.removeprefix(WORKER_KEY), value)
            for key, value in zip(keys, values, strict=True)
            if value is not None
        ]
        return [worker for worker in found if worker is not None]

    def training_queues(self) -> list[str]:
        """The queues that a run may be sent to: the shared one and each live worker's own."""
        shared = training_queue(self._settings)
        pinned = {
            queue for worker in self.workers() if shared in worker.queues for queue in worker.queues
        }
        return [shared, *sorted(pinned - {shared})]

    def announce_cancel(self, job_id: str, wish: Wish) -> None:
        """Let the worker know at once; the row has it already, so a failure only costs time."""
        try:
            wishes.put(self._redis, job_id, wish)
        except (redis.RedisError, OSError) as error:
            _log.warning("a cancellation was not announced", job_id=job_id, error=str(error))

    def forget_cancel(self, job_id: str) -> Wish | None:
        """Take back what asks for a cancellation in Redis, if it does.

        Raises Unavailable when Redis is away.
        """
        try:
            return wishes.take(self._redis, job_id)
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer: {type(error).__name__}") from error

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()
        self._celery.close()


def _worker(name: str, told: bytes | str) -> LiveWorker | None:
    """What a worker has told of itself; None: nothing that this version reads."""
    try:
        one = json.loads(told)
        queues, memory = one["queues"], one.get("memory_bytes", {})
        return LiveWorker(
            name=name,
            queues=tuple(str(queue) for queue in queues),
            memory_bytes={str(device): int(size) for device, size in memory.items()},
            reads_sums=tuple(str(name) for name in one.get("reads_sums", (SHA256,))),
        )
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        _log.warning("what a worker tells of itself cannot be read", worker=name)
        return None
