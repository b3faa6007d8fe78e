"""A job's whole life in any order of events, against a model of a few lines."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import update

from trainer_app.core.spec import TrainSpec
from trainer_app.errors import AlreadyFinished, Conflict, LeaseLost
from trainer_app.store import lease, metrics, pauses, runs
from trainer_app.store.database import NOW, Database
from trainer_app.store.lease import Claim, MetricPoint, Progress, Status
from trainer_app.store.tables import JobRow

_MAX_CRASHES = 3
_FINAL = {Status.COMPLETED, Status.FAILED, Status.CANCELLED}


class Life(RuleBasedStateMachine):
    """One run, its workers of all attempts, its users, and housekeeping."""

    template: ClassVar[Path]  # a migrated database to copy
    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(prefix="life-"))
        shutil.copyfile(self.template, self._folder / "trainer.db")
        self.database = Database(f"sqlite:///{self._folder / 'trainer.db'}")
        spec = TrainSpec(corpus_path="a.txt", corpus_sha256="0" * 64)
        self.run_id = runs.create(self.database, spec, queue="trainer").run_id
        self.status = Status.QUEUED
        self.attempt = 0
        self.crashes = 0
        self.retries = 0
        self.setback = 0  # the step of the last of both
        self.asked = False  # to cancel
        self.waits = False  # for a back-off
        self.over = False  # the lease
        self.paused = False
        self.step = 0

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self._folder)

    def holds(self, claim: Claim) -> bool:
        return self.status is Status.RUNNING and claim.attempt == self.attempt

    def attempt_to(self, claim: Claim, move: str, **values: object) -> bool:
        """Make a move in the name of a claim; True when it was the one that counts."""
        try:
            getattr(lease, move)(self.database, claim, **values)
        except LeaseLost:
            assert not self.holds(claim)
            return False
        assert self.holds(claim)
        return True

    def move_to(self, status: Status) -> None:
        self.status = status
        self.paused = self.paused and status not in _FINAL

    def queue_again(self) -> None:
        self.move_to(Status.CANCELLED if self.asked else Status.QUEUED)

    @rule(target=claims)
    def deliver_a_message(self) -> Claim | MultipleResults[Claim]:
        claim = lease.claim(self.database, self.run_id, "worker:1", lease_seconds=60)
        if self.status is not Status.QUEUED or self.waits or self.paused:
            assert claim is None
            return multiple()
        assert claim is not None
        self.status, self.attempt, self.over = Status.RUNNING, self.attempt + 1, False
        assert claim.attempt == self.attempt
        assert runs.get(self.database, self.run_id).crashes == self.crashes
        assert lease.retries(self.database, claim) == self.retries
        return claim

    @rule(claim=claims)
    def beat(self, claim: Claim) -> None:
        if self.attempt_to(claim, "beat", lease_seconds=60):
            self.over = False

    @rule(claim=claims)
    def report(self, claim: Claim) -> None:
        change = Progress(step=self.step + 1)
        points = [MetricPoint(step=self.step + 1, train_loss=1.0)]
        if self.attempt_to(claim, "progress", change=change, points=points):
            self.step += 1

    @rule(claim=claims)
    def save(self, claim: Claim) -> None:
        change = Progress(checkpoint=f"step-{self.step}", checkpoint_step=self.step)
        if self.attempt_to(claim, "progress", change=change) and self.step > self.setback:
            self.crashes, self.retries = 0, 0

    @rule(claim=consumes(claims), status=st.sampled_from(sorted(_FINAL)))
    def finish(self, claim: Claim, status: Status) -> None:
        if self.attempt_to(claim, "finish", status=status):
            self.move_to(status)

    @rule(claim=consumes(claims))
    def drain(self, claim: Claim) -> None:
        if self.attempt_to(claim, "hand_back", message="drained"):
            self.queue_again()

    @rule(claim=consumes(claims))
    def fail_for_a_while(self, claim: Claim) -> None:
        if self.attempt_to(claim, "retry_later", delay_seconds=300, message="again"):
            self.queue_again()
            self.waits = True
            self.retries += 1
            self.setback = max(self.setback, self.step)

    @rule()
    def cancel(self) -> None:
        try:
            status = lease.request_cancel(self.database, self.run_id)
        except AlreadyFinished:
            assert self.status in {Status.COMPLETED, Status.FAILED}
            return
        if self.status is Status.QUEUED:
            self.move_to(Status.CANCELLED)
        self.asked = self.asked or self.status is Status.RUNNING
        assert status is self.status

    @rule()
    def pause(self) -> None:
        try:
            status = pauses.pause(self.database, self.run_id)
        except AlreadyFinished:
            assert self.status in _FINAL
            return
        self.paused = True
        assert status is self.status

    @rule()
    def resume(self) -> None:
        try:
            status = pauses.resume(self.database, self.run_id)
        except AlreadyFinished:
            assert self.status is Status.COMPLETED
            return
        except Conflict:
            assert self.status not in _FINAL
            assert not self.paused
            return
        if self.status in _FINAL:
            self.status, self.asked = Status.QUEUED, False
        self.paused, self.waits = False, False
        self.crashes, self.retries, self.setback = 0, 0, 0
        assert status is self.status

    @precondition(lambda self: self.status is Status.RUNNING)
    @rule()
    def outlast_the_lease(self) -> None:
        with self.database.write() as connection:
            connection.execute(update(JobRow).values(lease_until=NOW - 1))
        self.over = True

    @rule()
    def outlast_the_back_off(self) -> None:
        with self.database.write() as connection:
            connection.execute(update(JobRow).values(not_before=0.0))
        self.waits = False

    @rule()
    def reap(self) -> None:
        reaped = lease.reap(self.database, max_crashes=_MAX_CRASHES)
        if self.status is not Status.RUNNING or not self.over:
            assert reaped == []
            return
        self.crashes += 1
        self.setback = max(self.setback, self.step)
        again = Status.FAILED if self.crashes >= _MAX_CRASHES else Status.QUEUED
        self.move_to(Status.CANCELLED if self.asked else again)
        self.waits = self.crashes > 1
        assert [one.status for one in reaped] == [self.status]

    @rule()
    def dispatch(self) -> None:
        due = lease.due(self.database, all_queued=True)
        ready = self.status is Status.QUEUED and not self.paused
        assert bool(due) == (ready and not self.waits)

    @invariant()
    def the_row_is_as_the_model_says(self) -> None:
        run = runs.get(self.database, self.run_id)
        assert (run.status, run.attempt, run.crashes) == (self.status, self.attempt, self.crashes)
        assert (run.step, run.paused) == (self.step, self.paused)
        assert (run.completed_at is not None) == (self.status in _FINAL)
        ready = self.status is Status.QUEUED and not self.paused
        assert (run.queue_position is not None) == ready
        points = metrics.curve(self.database, self.run_id)
        assert [point.step for point in points] == list(range(1, self.step + 1))
        attempts = [point.attempt for point in points]
        assert attempts == sorted(attempts)


def test_no_order_of_events_breaks_a_jobs_life(migrated_sqlite: Path) -> None:
    class LifeInThisFile(Life):
        template = migrated_sqlite

    run_state_machine_as_test(
        LifeInThisFile,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
