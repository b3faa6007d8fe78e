"""What the tests of the store share: jobs in each state, and time that passes when told to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from sqlalchemy import update

from trainer_app.core.spec import TrainSpec
from trainer_app.store import lease, runs
from trainer_app.store.database import Database
from trainer_app.store.lease import Claim
from trainer_app.store.tables import JobRow

Elapse = Callable[[float], None]


class AnotherRun(Protocol):
    """Queues a run that differs from ``spec`` in these fields; returns its id."""

    def __call__(self, **fields: object) -> str: ...


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without any table."""
    if request.param == "sqlite":
        path = tmp_path / "new" / "folder" / "trainer.db"
        path.parent.mkdir(parents=True)
        path.touch()  # SQLite's own way to be empty
        return f"sqlite:///{path}"
    url: str = request.getfixturevalue("bare_postgres_url")
    return url


@pytest.fixture
def spec() -> TrainSpec:
    """A run to ask for."""
    return TrainSpec(corpus_path="a.txt", corpus_sha256="0" * 64)


@pytest.fixture
def run_id(database: Database, spec: TrainSpec) -> str:
    """A queued run."""
    return runs.create(database, spec, queue="trainer").run_id


@pytest.fixture
def claim(database: Database, run_id: str) -> Claim:
    """The same run, running."""
    claimed = lease.claim(database, run_id, "worker:1", lease_seconds=60)
    assert claimed is not None
    return claimed


@pytest.fixture
def stale(database: Database, claim: Claim, elapse: Elapse) -> Claim:
    """A claim whose lease was over; the same worker has since claimed the run again."""
    elapse(61)
    lease.reap(database, max_crashes=3)
    assert lease.claim(database, claim.job_id, claim.owner, lease_seconds=60) is not None
    return claim


@pytest.fixture
def elapse(database: Database) -> Elapse:
    """Let so many seconds pass, for all jobs: nothing but the database's clock counts."""

    def shift(seconds: float) -> None:
        times = (
            JobRow.lease_until,
            JobRow.heartbeat_at,
            JobRow.dispatched_at,
            JobRow.created_at,
            JobRow.completed_at,
        )
        with database.write() as connection:
            connection.execute(
                update(JobRow).values({column: column - seconds for column in times})
            )
            connection.execute(
                update(JobRow)
                .where(JobRow.not_before > 0)
                .values(not_before=JobRow.not_before - seconds)
            )

    return shift


@pytest.fixture
def another_run(database: Database, spec: TrainSpec) -> AnotherRun:
    """Queues one more run."""

    def create(**fields: object) -> str:
        changed = TrainSpec.from_json(json.dumps(json.loads(spec.to_json()) | fields))
        return runs.create(database, changed, queue="trainer").run_id

    return create
