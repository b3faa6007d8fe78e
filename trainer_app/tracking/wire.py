"""What the process of a run tells its process for W&B: a line of JSON a message.

Neither end imports what the other needs: no torch there, no wandb here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from trainer_app.core.observer import EvaluationReport, StepReport


class Step(NamedTuple):
    """What W&B is told of a step."""

    step: int
    epoch: int
    train_loss: float
    grad_norm: float | None
    samples_per_sec: float
    tokens_per_sec: float
    step_ms: float
    mfu: float | None

    @classmethod
    def of(cls, report: StepReport) -> Step:
        """The same of the engine's report; each of many steps a second costs microseconds here."""
        return cls(
            report.step,
            report.epoch,
            report.train_loss,
            report.grad_norm,
            report.samples_per_sec,
            report.tokens_per_sec,
            report.step_ms,
            report.mfu,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """The first message: which run this is."""

    parent: int  # the process that tells
    run_id: str
    project: str
    directory: str  # of W&B's files
    memory: str  # the file of what earlier attempts have told
    spec: Mapping[str, object]
    init_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What the attempt made of what the request leaves to it: fields of the spec."""

    choices: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Consecutive steps."""

    steps: Sequence[Step]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The last message: nothing more comes from this attempt."""

    exit_code: int  # 0: the run is finished
    goes_on: bool = False  # another attempt will take the run up
    summary: Mapping[str, object] | None = None  # of a finished run


Message = Begin | Resolved | Steps | EvaluationReport | End
_KINDS = {kind.__name__: kind for kind in (Begin, Resolved, EvaluationReport, End)}


def encode(message: Message) -> bytes:
    """The message's line."""
    content = message.steps if isinstance(message, Steps) else asdict(message)
    return json.dumps([type(message).__name__, content]).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message of a line that ``encode`` made."""
    kind, content = json.loads(line)
    if kind == Steps.__name__:
        return Steps(steps=[Step(*values) for values in content])
    return _KINDS[kind](**content)
