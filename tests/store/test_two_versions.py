"""Processes of this version and of the one before, side by side on one database.

The version before is played by the tables as its last revision has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, insert, select, update

from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.errors import LeaseLost
from trainer_app.store import lease, metrics, migrate, runs, tokenizers
from trainer_app.store.database import NOW, Database
from trainer_app.store.lease import Claim, MetricPoint, Progress, Status
from trainer_app.store.tables import JobRow, Table

_ALEMBIC_INI = Path(__file__).parents[2] / "migrations" / "alembic.ini"
_JOB: dict[str, object] = {
    "kind": "train",
    "status": "queued",
    "user_id": 0,
    "queue": "trainer",
    "priority": 0,
    "spec": TrainSpec(corpus_path="a.txt", corpus_sha256="0" * 64).to_json(),
    "attempt": 0,
    "cancel_requested": False,
    "paused": False,
    "crashes": 0,
    "retries": 0,
    "not_before": 0.0,
    "dispatches": 0,
    "message": "",
    "created_at": 1e9,
}
_RUN: dict[str, object] = {
    "model_family": "gpt2",
    "model_size": "tiny",
    "progress": 0,
    "step": 0,
    "epoch": 0,
}


@pytest.fixture
def database(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database that the version before has made."""
    monkeypatch.setenv("DATABASE__URL", empty_url)
    config = Config(_ALEMBIC_INI)
    head = ScriptDirectory.from_config(config).get_revision("head")
    assert head is not None
    assert isinstance(head.down_revision, str)
    command.upgrade(config, head.down_revision)
    with closing(Database(empty_url)) as opened:
        yield opened


@pytest.fixture
def before(database: Database) -> MetaData:
    """The tables of the version before."""
    tables = MetaData()
    with database.read() as connection:
        tables.reflect(connection)
    return tables


def _create(connection: Connection, before: MetaData, run_id: str, **changes: object) -> None:
    """As the version before does it: with all the columns that it knows."""
    for name, values in (("jobs", _JOB | changes), ("runs", _RUN)):
        table = before.tables[name]
        row = {column.name: values.get(column.name) for column in table.columns}
        connection.execute(insert(table).values(row | {"id": run_id}))


def _write(connection: Connection, before: MetaData, claim: Claim, **values: object) -> int:
    """Write in the name of a claim, as the version before does; how many rows that met."""
    jobs = before.tables["jobs"]
    return connection.execute(
        update(jobs)
        .where(
            jobs.c.id == claim.job_id,
            jobs.c.attempt == claim.attempt,
            jobs.c.owner == claim.owner,
            jobs.c.status == "running",
        )
        .values(values)
    ).rowcount


def test_what_the_version_before_has_queued_is_run_by_this_one(
    database: Database, before: MetaData, empty_url: str
) -> None:
    with database.write() as connection:
        _create(connection, before, "run-1")
    migrate.upgrade(empty_url)

    first = lease.claim(database, "run-1", "worker:1", lease_seconds=60)
    assert first is not None
    assert not lease.beat(database, first, lease_seconds=60)
    news = Progress(step=7, checkpoint="step-7", checkpoint_step=7)
    lease.progress(database, first, news, [MetricPoint(step=7, train_loss=2.0)])
    lease.retry_later(database, first, delay_seconds=0, message="again")
    second = lease.claim(database, "run-1", "worker:1", lease_seconds=60)
    assert second is not None
    lease.finish(database, second, Status.COMPLETED)

    run = runs.get(database, "run-1")
    assert (run.status, run.attempt, run.step, run.progress) == ("completed", 2, 7, 100)


def test_a_run_that_the_version_before_was_at_goes_on_with_this_one(
    database: Database, before: MetaData, empty_url: str
) -> None:
    running = {"status": "running", "owner": "worker:1", "lease_until": 1e9, "attempt": 3}
    with database.write() as connection:
        _create(connection, before, "run-1", crashes=2, checkpoint="step-7", **running)
    migrate.upgrade(empty_url)

    (reaped,) = lease.reap(database, max_crashes=4)
    assert (reaped.status, reaped.attempt) == (Status.QUEUED, 3)
    with database.write() as connection:
        connection.execute(update(JobRow).values(not_before=0.0))
    claim = lease.claim(database, "run-1", "worker:2", lease_seconds=60)

    assert claim is not None
    run = runs.get(database, "run-1")
    assert (claim.attempt, run.checkpoint, run.crashes) == (4, "step-7", 3)


def test_workers_of_the_version_before_go_on_with_the_new_schema(
    database: Database, before: MetaData, empty_url: str
) -> None:
    migrate.upgrade(empty_url)
    jobs, told, curve = (before.tables[name] for name in ("jobs", "runs", "metrics"))
    with database.write() as connection:
        _create(connection, before, "run-1")
        connection.execute(
            update(jobs)
            .where(jobs.c.id == "run-1", jobs.c.status == "queued", ~jobs.c.cancel_requested)
            .values(status="running", owner="worker:1", attempt=1, lease_until=NOW + 60)
        )
        claimed = connection.execute(select(jobs)).one()
    claim = Claim(
        job_id="run-1",
        kind=lease.JobKind.TRAIN,
        attempt=claimed.attempt,
        owner=claimed.owner,
        spec=claimed.spec,
        user_id=0,
        queue="trainer",
        run_id=None,
        created_at=claimed.created_at,
        request_id=None,
    )
    with database.write() as connection:
        assert _write(connection, before, claim, lease_until=NOW + 60, heartbeat_at=NOW) == 1
        assert _write(connection, before, claim, checkpoint="step-7") == 1
        connection.execute(update(told).values(step=7, checkpoint_step=7))
        point = {"run_id": "run-1", "step": 7, "epoch": 0, "attempt": 1, "at": 1e9}
        connection.execute(insert(curve).values(point))
        ended = {"status": "completed", "owner": None, "lease_until": None, "completed_at": NOW}
        assert _write(connection, before, claim, **ended) == 1

    run = runs.get(database, "run-1")
    assert (run.status, run.step, run.checkpoint_step) == ("completed", 7, 7)
    assert [point.step for point in metrics.curve(database, "run-1")] == [7]


def test_a_tokenizer_that_the_version_before_has_finished_has_no_digest_and_is_there(
    database: Database, before: MetaData, empty_url: str
) -> None:
    spec = TokenizerSpec(method="bpe", vocab_size=300, corpus_sha256="0" * 64, tokenizer_id="t1")
    ended = {"status": "completed", "completed_at": 1e9, "result": "{}"}
    rows: dict[str, dict[str, object]] = {
        "jobs": _JOB | ended | {"id": "tok-1", "kind": "tokenizer", "spec": spec.to_json()},
        "tokenizers": {"id": "t1", "job_id": "tok-1", "method": "bpe"},
    }
    migrate.upgrade(empty_url)
    with database.write() as connection:
        for name, row in rows.items():
            connection.execute(insert(before.tables[name]).values(row))

    found = tokenizers.get(database, "t1")
    assert (found.status, found.artifact_sha256) == (Status.COMPLETED, None)


def test_each_version_keeps_the_others_stale_attempt_from_writing(
    database: Database, before: MetaData, empty_url: str
) -> None:
    migrate.upgrade(empty_url)
    jobs = before.tables["jobs"]
    with database.write() as connection:
        _create(connection, before, "run-1")
    ours = lease.claim(database, "run-1", "worker:1", lease_seconds=60)
    assert ours is not None
    with database.write() as connection:  # the version before takes the run over
        again = {"status": "queued", "owner": None, "lease_until": None}
        assert _write(connection, before, ours, **again, crashes=1) == 1
        taken = {"status": "running", "owner": "worker:2", "attempt": 2, "lease_until": NOW - 1}
        connection.execute(update(jobs).values(taken))

    with pytest.raises(LeaseLost):
        lease.beat(database, ours, lease_seconds=60)
    (reaped,) = lease.reap(database, max_crashes=3)
    assert reaped.attempt == 2
    with database.write() as connection:
        assert _write(connection, before, ours, message="stale") == 0


def test_a_migration_takes_nothing_that_the_version_before_needs_and_asks_it_for_nothing(
    database: Database, before: MetaData, empty_url: str
) -> None:
    migrate.upgrade(empty_url)
    after = MetaData()
    with database.read() as connection:
        after.reflect(connection)

    for name in set(before.tables) & set(Table.metadata.tables):
        old, new = before.tables[name].columns, after.tables[name].columns
        assert set(old.keys()) <= set(new.keys())
        for column in new:
            was = old.get(column.name)
            if was is None:
                assert column.nullable or column.server_default is not None, column
            else:
                assert column.nullable or not was.nullable, column
    assert set(before.tables) <= set(after.tables)
