"""Keys of repeated requests."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import update

from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.errors import FieldError
from trainer_app.store import corpora, idempotency, lease, pauses, runs, tokenizers
from trainer_app.store.database import NOW, Database
from trainer_app.store.idempotency import IdempotencyKey
from trainer_app.store.tables import IdempotencyRow


def forget_what_is_a_minute_old(database: Database) -> int:
    with database.write() as connection:
        connection.execute(update(IdempotencyRow).values(created_at=NOW - 61))
    return idempotency.purge(database, older_than_seconds=60)


@pytest.mark.parametrize("kind", ["run", "tokenizer", "named tokenizer"])
def test_old_keys_are_forgotten_once_what_they_created_has_ended(
    database: Database, spec: TrainSpec, kind: str
) -> None:
    key = IdempotencyKey(endpoint="POST /runs/train", key="key", body_sha256="a" * 64)
    named = "mine" if kind == "named tokenizer" else None
    tokenizer = TokenizerSpec(
        method="bpe", vocab_size=300, corpus_sha256="0" * 64, tokenizer_id=named
    )

    def post() -> str:
        if kind == "run":
            return runs.create(database, spec, queue="trainer", idempotency=key).run_id
        return tokenizers.create(database, tokenizer, queue="light", idempotency=key).job_id

    first = post()
    assert idempotency.purge(database, older_than_seconds=60) == 0
    assert forget_what_is_a_minute_old(database) == 0  # it is queued
    claim = lease.claim(database, first, "worker:1", lease_seconds=60)
    assert claim is not None
    assert forget_what_is_a_minute_old(database) == 0
    assert post() == first
    lease.finish(database, claim, "failed")
    assert post() == first  # it is not old enough
    assert forget_what_is_a_minute_old(database) == 1
    assert post() != first


@pytest.mark.parametrize("ended", [0, 1])
def test_each_key_goes_by_the_tokenizer_that_it_created(database: Database, ended: int) -> None:
    keys = [IdempotencyKey(endpoint="POST /t", key=key, body_sha256="a" * 64) for key in "ab"]

    def post(number: int) -> str:
        asked = TokenizerSpec(
            method="bpe", vocab_size=300, corpus_sha256="0" * 64, tokenizer_id=f"mine-{number}"
        )
        return tokenizers.create(
            database, asked, queue="light", idempotency=keys[number]
        ).tokenizer_id

    made = [post(0), post(1)]
    job_id = tokenizers.get(database, made[ended]).job_id
    claim = lease.claim(database, job_id, "worker:1", lease_seconds=60)
    assert claim is not None
    lease.finish(database, claim, "failed")

    assert forget_what_is_a_minute_old(database) == 1
    assert idempotency.find(database, keys[ended]) is None
    assert idempotency.find(database, keys[1 - ended]) == made[1 - ended]


def test_an_old_key_of_a_corpus_or_of_an_answer_is_forgotten(
    database: Database, run_id: str
) -> None:
    keys = [IdempotencyKey(endpoint=f"POST /{n}", key="k", body_sha256="a" * 64) for n in "ab"]
    corpora.add(database, "a" * 64, 1, 1, idempotency=keys[0])
    pauses.pause(database, run_id, idempotency=keys[1])

    assert forget_what_is_a_minute_old(database) == 2


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
