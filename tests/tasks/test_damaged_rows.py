"""A worker ends a job whose row was edited by hand into no JSON, and no other job suffers by it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from sqlalchemy import select, update

from tasks import housekeeping, process
from tasks.perform import perform
from tasks.shells import work_of
from tests.damaged import ASKED_LOST, NO_OBJECTS, damage, damage_resolved
from tests.tasks.claims import claimed
from tests.tasks.tiny_runs import QueueRun
from trainer_app.core.chat_spec import ChatSpec
from trainer_app.core.evaluate_spec import EvaluateSpec
from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.json_spec import JsonSpec
from trainer_app.core.score_spec import ScoreSpec
from trainer_app.core.spec import TokenizerSpec
from trainer_app.settings import Settings
from trainer_app.store import lease, requests, runs, tokenizers
from trainer_app.store.lease import JobKind
from trainer_app.store.tables import JobRow

REQUESTS: dict[JobKind, JsonSpec] = {
    JobKind.GENERATE: GenerateSpec(prompt_text="a", max_new_tokens=2),
    JobKind.SCORE: ScoreSpec(text="a text"),
    JobKind.EVALUATE: EvaluateSpec(),
    JobKind.CHAT: ChatSpec(message="a", session_id="s"),
}


def queue(kind: JobKind, queue_run: QueueRun) -> str:
    database = process.database()
    if kind is JobKind.TRAIN:
        return queue_run()
    if kind is JobKind.TOKENIZER:
        spec = TokenizerSpec(method="char", vocab_size=300, corpus_sha256="0" * 64)
        return tokenizers.create(database, spec, queue="trainer.light").job_id
    text = REQUESTS[kind].to_json()
    made = requests.create(database, kind, queue_run(), text, queue="q", user_id=0, topic="test")
    return made.request_id


def end_of(job_id: str) -> tuple[str, str | None, str, int, float | None]:
    columns = (JobRow.status, JobRow.error_code, JobRow.message, JobRow.attempt, JobRow.not_before)
    with process.database().read() as connection:
        status, code, message, attempt, not_before = connection.execute(
            select(*columns).where(JobRow.id == job_id)
        ).one()
    return status, code, message, attempt, not_before


@pytest.mark.parametrize("kind", JobKind)
@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_job_whose_spec_cannot_be_read_fails_at_its_first_attempt(
    worker: Settings, queue_run: QueueRun, kind: JobKind, text: str
) -> None:
    job_id = queue(kind, queue_run)
    damage(process.database(), job_id, spec=text)

    perform(job_id, hostname="train-0@here", work=work_of(kind))

    message = f"{ASKED_LOST} (it holds no JSON object)"
    assert end_of(job_id) == ("failed", "INTERNAL_ERROR", message, 1, 0.0)
    assert not process.spent.is_set()  # a fresh process would find the same
    assert list(worker.paths.runs.glob("*")) == []


def test_a_job_with_a_value_of_another_type_fails_with_the_name_of_the_field(
    queue_run: QueueRun,
) -> None:
    run_id = queue_run()
    spec = json.loads(runs.get(process.database(), run_id).spec.to_json())
    damage(process.database(), run_id, spec=json.dumps(spec | {"max_seq_len": "abc"}))

    perform(run_id, hostname="train-0@here", work=work_of(JobKind.TRAIN))

    said = f"{ASKED_LOST} (max_seq_len is no int)"
    assert end_of(run_id)[:3] == ("failed", "INTERNAL_ERROR", said)


def test_the_end_of_such_a_job_is_told(
    queue_run: QueueRun, sent_events: Callable[[], list[dict[str, object]]]
) -> None:
    run_id = queue_run()
    damage(process.database(), run_id, spec="")

    perform(run_id, hostname="train-0@here", work=work_of(JobKind.TRAIN))

    (failed,) = [event for event in sent_events() if str(event["type"]).endswith("failed.v1")]
    assert ASKED_LOST in str(failed["message"])


def test_a_run_whose_resolved_fields_cannot_be_read_is_trained(queue_run: QueueRun) -> None:
    run_id = queue_run()
    damage_resolved(process.database(), run_id, "[]")

    perform(run_id, hostname="train-0@here", work=work_of(JobKind.TRAIN))

    run = runs.get(process.database(), run_id)
    assert (run.status, run.spec.device) == ("completed", "cpu")


@pytest.mark.parametrize("kind", [JobKind.GENERATE, JobKind.SCORE, JobKind.EVALUATE])
def test_a_request_to_a_run_whose_spec_cannot_be_read_fails_with_its_name(
    queue_run: QueueRun, kind: JobKind
) -> None:
    run_id = queue_run(holdout_fraction=0.1)
    perform(run_id, hostname="train-0@here", work=work_of(JobKind.TRAIN))
    made = requests.create(
        process.database(), kind, run_id, REQUESTS[kind].to_json(), queue="q", user_id=0
    )
    damage(process.database(), run_id, spec="[]")

    perform(made.request_id, hostname="train-0@here", work=work_of(kind))

    said = f"{run_id}: {ASKED_LOST}"
    assert end_of(made.request_id)[:4] == ("failed", "INTERNAL_ERROR", said, 1)


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_housekeeping_goes_on_for_all_other_jobs(
    worker: Settings, queue_run: QueueRun, text: str
) -> None:
    database = process.database()
    lost = [claimed(queue_run(), f"gone:{number}").job_id for number in range(2)]
    queued = [queue_run() for _ in range(2)]
    for job_id in (lost[0], queued[0]):
        damage(database, job_id, spec=text, result=text)
        damage_resolved(database, job_id, text)
    with database.write() as connection:
        connection.execute(
            update(JobRow).where(JobRow.id.in_(lost)).values(lease_until=0.0, heartbeat_at=0.0)
        )

    housekeeping.reap()
    assert housekeeping.dispatch()
    housekeeping.purge()

    assert {end_of(job_id)[0] for job_id in (*lost, *queued)} == {"queued"}
    assert {end_of(job_id)[2] for job_id in lost} == {
        "attempt 1: worker lost at step 0; queued again"
    }
    assert lease.due(database) == []  # all were published


def test_the_last_crash_of_such_a_run_ends_it_like_any_other(queue_run: QueueRun) -> None:
    run_id = claimed(queue_run(), "gone:1").job_id
    damage(process.database(), run_id, spec="{", result="{")
    with process.database().write() as connection:
        connection.execute(
            update(JobRow)
            .where(JobRow.id == run_id)
            .values(lease_until=0.0, crashes=process.settings().jobs.max_crashes - 1)
        )

    housekeeping.reap()

    assert end_of(run_id)[:2] == ("failed", "WORKER_LOST")
