"""The one list of the stack's processes and their commands; the Procfile says the same in text.

All that differs between machines comes from the environment, which ``trainer_app.settings`` reads
in each process.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from trainer_app.queue import inference_queue, light_queue, pinned_queue, training_queue
from trainer_app.settings import Settings

_GUNICORN: Final = "trainer_app.stack.gunicorn_conf"


class Role(StrEnum):
    """What a process does in the stack; the names under which stack.json lists the pids."""

    BROKER = "broker"
    API = "api"
    WORKER = "worker"
    INFERENCE = "inference"
    LIGHT = "light"
    HOUSEKEEPING = "housekeeping"
    FLOWER = "flower"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that is to run for as long as the stack does."""

    name: str
    role: Role
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)  # beside the supervisor's own


def processes(
    settings: Settings, gpus: Sequence[str], *, with_flower: bool = False
) -> list[Process]:
    """Everything but the broker; ``gpus`` are names as CUDA_VISIBLE_DEVICES takes them.

    A training worker sees its own GPU alone. The inference worker and the light one, which
    evaluates, share the first; the others see none.
    """
    blind = {"CUDA_VISIBLE_DEVICES": ""}
    first = {"CUDA_VISIBLE_DEVICES": gpus[0]} if gpus else blind
    workers = [
        training_worker(settings, index, device=device, visible=visible)
        for index, (device, visible) in enumerate(_devices(gpus))
    ]
    flower = Process(
        name="flower",
        role=Role.FLOWER,
        command=_python("trainer_app.stack.flower"),
        environment=blind,
    )
    return [
        Process(
            name="api",
            role=Role.API,
            command=_python("gunicorn", "--config", f"python:{_GUNICORN}", "wsgi:app"),
            environment=blind,
        ),
        *workers,
        Process(
            name="inference",
            role=Role.INFERENCE,
            command=_celery("infer", inference_queue(settings)),
            environment=first,
        ),
        Process(
            name="light",
            role=Role.LIGHT,
            command=_celery("light", light_queue(settings)),
            environment=first,
        ),
        Process(
            name="housekeeping",
            role=Role.HOUSEKEEPING,
            command=_python("tasks.housekeeping"),
            environment=blind,
        ),
        *([flower] if with_flower else []),
    ]


def training_worker(settings: Settings, index: int, *, device: str, visible: str) -> Process:
    """A worker that trains; ``device`` names its own queue, ``visible`` is what CUDA shows it."""
    # The pinned queue comes first: with queue_order_strategy 'priority' it is drained first.
    queues = (pinned_queue(settings, device), training_queue(settings))
    return Process(
        name=f"worker-{index}",
        role=Role.WORKER,
        command=_celery(f"train-{index}", *queues),
        environment={"CUDA_VISIBLE_DEVICES": visible},
    )


def _devices(gpus: Sequence[str]) -> list[tuple[str, str]]:
    """A name for the queue and a value of CUDA_VISIBLE_DEVICES for each training worker."""
    return [(f"gpu{index}", gpu) for index, gpu in enumerate(gpus)] or [("cpu", "")]


def _celery(name: str, *queues: str) -> tuple[str, ...]:
    # -q: no banner. Gossip and mingle only make noise at each reconnect. -E (events) feeds Flower.
    worker = ("celery", "-q", "-A", "tasks.app", "worker", "--without-gossip", "--without-mingle")
    rest = ("-E", "--concurrency", "1", "--hostname", f"{name}@%h", "--queues", ",".join(queues))
    return _python(*worker, *rest)


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)
