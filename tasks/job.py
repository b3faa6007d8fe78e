"""What the work of a job is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from tasks import process
from tasks.held import Held
from tasks.patience import insist
from tasks.spent import may_be_the_process
from trainer_app.core.observer import StopReason
from trainer_app.core.stopping import raise_if_stopped
from trainer_app.errors import TrainerError, Unavailable
from trainer_app.events import JobEvents
from trainer_app.log import JobLog
from trainer_app.store import lease
from trainer_app.store.lease import Artifact, Claim

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A job's work is finished and its result is in place."""

    result: str  # JSON
    result_id: str
    result_bytes: int = 0
    artifact: Artifact | None = None
    final_metrics: Mapping[str, object] = field(default_factory=dict)  # empty: no such event
    problem: TrainerError | None = None  # what went wrong beside the work, which is done


class Left(NamedTuple):
    """That a job is not claimed, but left to another worker or for later."""

    reason: str
    is_news: bool = True  # it was not left for this reason when it was last looked at


@dataclass(slots=True, kw_only=True)
class Job:
    """What the work of a job is given."""

    claim: Claim
    held: Held
    log: JobLog
    events: JobEvents
    published: Done | None = None  # its end from then on, whatever stops or fails afterwards
    may_be_in_place: bool = False  # what it has made: it is being renamed, or was

    def renew_lease(self) -> None:
        """Make sure, before a result is published, that it is still this attempt's to publish.

        However long the database is away: the work is done. Raises LeaseLost.
        """
        seconds = process.settings().jobs.lease_seconds
        insist(lambda: lease.beat(process.database(), self.claim, lease_seconds=seconds))

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """What the database answers, however long it is away: no attempt is to be lost for that.

        Raises StopRequested where the job is to stop meanwhile, TrainerError where it is this
        process that cannot ask, and what the question raises.
        """

        def answer() -> Answer:
            try:
                return question()
            except Unavailable as error:
                if may_be_the_process(error):  # no patience helps it
                    raise TrainerError(error.message) from error
                raise_if_stopped(self.held.should_stop)
                raise

        return insist(answer)


Work = Callable[[Job], Done | StopReason]
