"""A row that was edited by hand into no JSON object harms its own job alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

import pytest
from sqlalchemy import text as sql

from tests.damaged import ASKED_LOST, NO_OBJECTS, RESULT_LOST, damage, damage_resolved
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.errors import RowDamaged
from trainer_app.store import lease, pauses, requests, runs, tokenizers, uses
from trainer_app.store.database import Database
from trainer_app.store.endings import Published
from trainer_app.store.idempotency import IdempotencyKey
from trainer_app.store.lease import Claim, JobKind, Progress, Status

Elapse = Callable[[float], None]


class AnotherRun(Protocol):
    def __call__(self, **fields: object) -> str: ...


TOKENIZER = TokenizerSpec(method="bpe", vocab_size=300, corpus_sha256="0" * 64, tokenizer_id="t")
MODEL = Published(result='{"final_loss": 1.5}', sha256="1" * 64)


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_a_run_whose_spec_cannot_be_read_is_shown_by_its_other_columns(
    database: Database, another_run: AnotherRun, text: str
) -> None:
    whole = another_run(tags=["a"])
    run_id = another_run(tags=["a"], model_family="llama", user_id=7)
    damage(database, run_id, spec=text)

    run = runs.get(database, run_id)
    assert (run.model_family, run.user_id, run.status, run.asked) == ("llama", 7, "queued", None)
    assert [one.run_id for one in runs.list_(database, tag="a").items] == [run_id, whole]
    assert [one.tags for one in runs.list_(database).items] == [(), ("a",)]
    with pytest.raises(RowDamaged, match=f"^{run_id}: {ASKED_LOST}$"):
        assert run.spec is None


@pytest.mark.parametrize("text", [*NO_OBJECTS, '{"data_num_workers": "two"}'])
def test_a_run_whose_resolved_fields_cannot_be_read_is_shown_as_asked_for(
    database: Database, claim: Claim, spec: TrainSpec, text: str
) -> None:
    damage_resolved(database, claim.job_id, text)

    assert runs.get(database, claim.job_id).spec == spec

    lease.progress(database, claim, Progress(resolved='{"device": "cpu"}'))
    assert runs.get(database, claim.job_id).spec.device == "cpu"


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_a_run_whose_spec_cannot_be_read_is_not_resumed(
    database: Database, claim: Claim, status: Status
) -> None:
    lease.finish(database, claim, status, message="over")
    damage(database, claim.job_id, spec="{")
    before = runs.get(database, claim.job_id)
    key = IdempotencyKey(endpoint="POST /resume", key="k", body_sha256="0" * 64)

    for _ in range(2):
        with pytest.raises(RowDamaged, match=f"^{claim.job_id}: {ASKED_LOST}$"):
            pauses.resume(database, claim.job_id, idempotency=key)

    assert runs.get(database, claim.job_id) == before


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_a_tokenizer_whose_row_cannot_be_read_is_shown_by_its_other_columns(
    database: Database, text: str
) -> None:
    job_id = tokenizers.create(database, TOKENIZER, queue="q").job_id
    claim = lease.claim(database, job_id, "worker:1", lease_seconds=60)
    assert claim is not None
    lease.finish(database, claim, Status.COMPLETED, result='{"vocab_size": 300}')

    damage(database, job_id, result=text)
    (shown,) = tokenizers.list_(database).items
    assert (shown.method, shown.status, shown.vocab_size) == ("bpe", "completed", None)
    assert shown.damage == RESULT_LOST
    assert shown.spec == TOKENIZER

    damage(database, job_id, result='{"vocab_size": 300}', spec=text)
    (shown,) = tokenizers.list_(database).items
    assert (shown.method, shown.status, shown.vocab_size) == ("bpe", "completed", 300)
    assert shown.damage == ASKED_LOST
    with pytest.raises(RowDamaged, match=f"^t: {ASKED_LOST}$"):
        assert shown.spec is None


def test_bytes_that_sqlite_takes_for_a_text_are_damage_like_any_other(
    sqlite_database: Database, spec: TrainSpec
) -> None:
    run_id = runs.create(sqlite_database, spec, queue="q").run_id
    with sqlite_database.write() as connection:
        connection.execute(sql("UPDATE jobs SET spec = x'ff00', result = x'7b7d'"))

    assert [(one.run_id, one.asked) for one in runs.list_(sqlite_database).items] == [
        (run_id, None)
    ]


def test_statistics_of_another_type_count_as_damaged(database: Database) -> None:
    job_id = tokenizers.create(database, TOKENIZER, queue="q").job_id
    damage(database, job_id, result='{"vocab_size": 300, "oov_rate": "none"}')

    (shown,) = tokenizers.list_(database).items

    assert (shown.vocab_size, shown.damage) == (None, RESULT_LOST)


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_lost_jobs_are_reaped_whatever_their_rows_hold(
    database: Database, claim: Claim, another_run: AnotherRun, elapse: Elapse, text: str
) -> None:
    other = lease.claim(database, another_run(), "worker:2", lease_seconds=60)
    assert other is not None
    damage(database, claim.job_id, spec=text, result=text)
    damage_resolved(database, claim.job_id, text)
    elapse(61)

    reaped = lease.reap(database, max_crashes=3)

    assert {one.job_id: one.status for one in reaped} == {
        claim.job_id: "queued",
        other.job_id: "queued",
    }
    assert {one.job_id for one in lease.due(database)} <= {claim.job_id, other.job_id}


def test_a_run_whose_result_cannot_be_read_has_completed_where_its_model_is_in_place(
    database: Database, claim: Claim, elapse: Elapse
) -> None:
    lease.record_published(database, claim, MODEL)
    damage(database, claim.job_id, result="[]")
    elapse(61)

    (reaped,) = lease.reap(database, max_crashes=3, left_in_place=lambda _run_id: MODEL)

    assert (reaped.status, reaped.result) == ("completed", MODEL.result)
    assert runs.get(database, claim.job_id).result == MODEL.result


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_clean_up_still_knows_what_all_other_jobs_read(
    database: Database, another_run: AnotherRun, text: str
) -> None:
    base = another_run()
    another_run(pretrained_run_id=base, corpus_sha256="1" * 64)
    broken = another_run(pretrained_run_id=base, corpus_sha256="2" * 64)
    asked = [
        requests.create(
            database,
            JobKind.EVALUATE,
            base,
            EvaluateSpec(text_sha256=digit * 64).to_json(),
            queue="q",
            user_id=0,
            topic="test",
        ).request_id
        for digit in "34"
    ]
    damage(database, broken, spec=text)
    damage(database, asked[0], spec=text)

    assert uses.models_in_use(database) == {base}
    texts = {digit * 64 for digit in "014"}
    assert uses.texts_in_use(database, failed_seconds=0) == texts


def test_a_repeat_of_a_post_gets_the_run_of_then_though_its_row_cannot_be_read(
    database: Database, spec: TrainSpec
) -> None:
    key = IdempotencyKey(endpoint="POST /runs/train", key="k", body_sha256="0" * 64)
    first = runs.create(database, spec, queue="q", idempotency=key)
    damage(database, first.run_id, spec="null")

    assert runs.create(database, spec, queue="q", idempotency=key).run_id == first.run_id


def test_an_unsent_job_whose_row_cannot_be_read_is_published_like_others(
    database: Database, run_id: str, another_run: AnotherRun
) -> None:
    other = another_run()
    damage(database, run_id, spec="3", result=json.dumps([]))

    assert {one.job_id for one in lease.due(database)} == {run_id, other}
