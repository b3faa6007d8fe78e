"""The events on ``trainer:events``, decoded strictly: a field that is missing or of another type
than the contract's is an error, a type of event that is not known is none.

Nothing here is taken from the service: this is what any client can rely on. Fields beyond these
may come with any event.
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, dataclass, fields
from typing import Final, Literal, get_args, get_origin, get_type_hints

ErrorKind = Literal["user", "system"]


class MalformedEvent(ValueError):
    """What was received is not an event of the contract."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What every event has."""

    job_id: str  # of a run: the run's id
    user_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lifecycle(_Common):
    """What every event of a job's life has."""

    domain: Literal["trainer"]
    queue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted(_Lifecycle):
    """A worker has taken the job: again, when another one takes it up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress(_Lifecycle):
    """How far the job is."""

    progress: int  # per cent, 0 to 99
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCompleted(_Lifecycle):
    """The job's result is there."""

    result_id: str
    result_bytes: int
    progress: Literal[100]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailed(_Lifecycle):
    """The job has ended without a result; a cancelled one with the message "cancelled"."""

    error_kind: ErrorKind
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig(_Common):
    """What is trained, and on what."""

    model_family: str
    model_size: str
    total_epochs: int
    queue: str
    cpu_cores: int
    memory_mb: int
    optimal_threads: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsProgress(_Common):
    """A point of the curve."""

    epoch: int  # from 0
    total_epochs: int
    step: int
    train_loss: float
    train_ppl: float
    grad_norm: float
    samples_per_sec: float
    loss: float
    perplexity: float
    val_loss: float | None = None  # at evaluations
    val_ppl: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsCompleted(_Common):
    """The final figures."""

    test_loss: float
    test_ppl: float
    artifact_path: str


Event = (
    JobStarted
    | JobProgress
    | JobCompleted
    | JobFailed
    | MetricsConfig
    | MetricsProgress
    | MetricsCompleted
)

TYPES: Final[dict[str, type[Event]]] = {
    "trainer.job.started.v1": JobStarted,
    "trainer.job.progress.v1": JobProgress,
    "trainer.job.completed.v1": JobCompleted,
    "trainer.job.failed.v1": JobFailed,
    "trainer.metrics.config.v1": MetricsConfig,
    "trainer.metrics.progress.v1": MetricsProgress,
    "trainer.metrics.completed.v1": MetricsCompleted,
}


def decode(text: str | bytes) -> Event | None:
    """The event in ``text``; None when its type is not one of TYPES. Raises MalformedEvent."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise MalformedEvent(f"not JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("type"), str):
        raise MalformedEvent("not a JSON object with a type")
    kind = TYPES.get(values["type"])
    if kind is None:
        return None
    hints = get_type_hints(kind)
    for field in fields(kind):
        if field.name not in values and field.default is MISSING:
            raise MalformedEvent(f"{values['type']} has no {field.name}")
        if field.name in values and not _fits(values[field.name], hints[field.name]):
            raise MalformedEvent(f"{values['type']}: {field.name} is {values[field.name]!r:.80}")
    if kind is JobProgress and values["progress"] not in range(100):
        raise MalformedEvent(f"{values['type']}: progress is {values['progress']}")
    return kind(**{name: values[name] for name in hints if name in values})


def _fits(value: object, hint: object) -> bool:
    """Whether a value is exactly of its type: 2 is no float, true no int, NaN no number."""
    if get_origin(hint) is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(hint))
    expected = get_args(hint)[0] if get_args(hint) else hint  # float | None: left out, never null
    return type(value) is expected and (not isinstance(value, float) or math.isfinite(value))
