"""Which kind of job has which spec, and whether this version of a worker can do what it asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tasks.job import Left
from trainer_app.core.chat_spec import ChatSpec
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.json_spec import JsonSpec
from trainer_app.core.score_spec import ScoreSpec
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.store import wakeups
from trainer_app.store.database import Database
from trainer_app.store.tables import JobKind

_SPECS: Final[Mapping[JobKind, type[JsonSpec]]] = {
    JobKind.TRAIN: TrainSpec,
    JobKind.TOKENIZER: TokenizerSpec,
    JobKind.GENERATE: GenerateSpec,
    JobKind.SCORE: ScoreSpec,
    JobKind.EVALUATE: EvaluateSpec,
    JobKind.CHAT: ChatSpec,
}
_AGAIN_SECONDS: Final = 10.0  # until a worker is called once more, which may be a newer one


def leave_to_newer(db: Database, job_id: str) -> Left | None:
    """Put off a queued job that asks for what this version does not know; why, if so.

    While versions are changed, those before and after work side by side: to do the job without
    what it asks for would be to do another one.
    """
    queued = wakeups.queued_spec(db, job_id)
    if queued is None:
        return None
    kind, spec = queued
    if kind in _SPECS:
        beyond = _SPECS[JobKind(kind)].asked_beyond(spec)
    else:
        beyond = [f"jobs of the kind {kind}"]
    if not beyond:
        return None
    reason = f"waits for a worker of a later version, which knows {', '.join(beyond)}"
    is_news = wakeups.put_off(db, job_id, message=reason, delay_seconds=_AGAIN_SECONDS)
    return Left(reason, is_news=is_news)
