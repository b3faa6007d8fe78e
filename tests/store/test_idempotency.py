"""Keys of repeated requests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import update

from trainer_app.core.spec import TrainSpec
from trainer_app.errors import FieldError
from trainer_app.store import idempotency, runs
from trainer_app.store.database import NOW, Database
from trainer_app.store.idempotency import IdempotencyKey
from trainer_app.store.tables import IdempotencyRow


def test_old_keys_are_forgotten(database: Database, spec: TrainSpec) -> None:
    def post() -> str:
        key = IdempotencyKey(endpoint="POST /runs/train", key="key", body_sha256="a" * 64)
        return runs.create(database, spec, queue="trainer", idempotency=key).run_id

    first = post()
    assert idempotency.purge(database, older_than_seconds=60) == 0
    assert post() == first
    with database.write() as connection:
        connection.execute(update(IdempotencyRow).values(created_at=NOW - 61))
    assert idempotency.purge(database, older_than_seconds=60) == 1
    assert post() != first


def test_what_a_key_created_is_found(database: Database, spec: TrainSpec) -> None:
    key = IdempotencyKey(endpoint="POST /runs/train", key="key", body_sha256="a" * 64)
    assert idempotency.find(database, key) is None
    assert idempotency.find(database, None) is None
    run_id = runs.create(database, spec, queue="trainer", idempotency=key).run_id
    assert idempotency.find(database, key) == run_id
    with pytest.raises(FieldError, match="another body"):
        idempotency.find(database, replace(key, body_sha256="b" * 64))


def test_one_key_may_be_used_at_two_endpoints(database: Database, spec: TrainSpec) -> None:
    created = {
        runs.create(
            database,
            spec,
            queue="trainer",
            idempotency=IdempotencyKey(endpoint=endpoint, key="key", body_sha256="a" * 64),
        ).run_id
        for endpoint in ("POST /a", "POST /b")
    }
    assert len(created) == 2
