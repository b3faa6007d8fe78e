"""What is in use, and what is not: the guards of clean-up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import pytest

from trainer_app.core.generation_spec import GenerateSpec
from trainer_app.core.spec import TokenizerSpec, TrainSpec
from trainer_app.errors import CorpusNotFound, TokenizerNotFound
from trainer_app.store import jobs, lease, pauses, requests, runs, tokenizers, uses
from trainer_app.store.database import Database
from trainer_app.store.idempotency import IdempotencyKey
from trainer_app.store.lease import Claim, JobKind, Status

Elapse = Callable[[float], None]
DAY = 86_400.0


class AnotherRun(Protocol):
    def __call__(self, **fields: object) -> str: ...


def end(database: Database, job_id: str, status: str) -> None:
    claim = lease.claim(database, job_id, "worker:1", lease_seconds=60)
    assert claim is not None
    lease.finish(database, claim, status, result="{}")


def ask(database: Database, run_id: str) -> str:
    spec = GenerateSpec(prompt_text="a").to_json()
    return requests.create(
        database, JobKind.GENERATE, run_id, spec, queue="q", user_id=0
    ).request_id


@pytest.fixture
def tokenizer_id(database: Database) -> str:
    """A finished tokenizer."""
    spec = TokenizerSpec(
        method="bpe", vocab_size=300, corpus_path="a.txt", corpus_sha256="0" * 64, tokenizer_id="t"
    )
    key = IdempotencyKey(endpoint="POST /tokenizers/train", key="k", body_sha256="0" * 64)
    tokenizer = tokenizers.create(database, spec, queue="trainer.light", idempotency=key)
    end(database, tokenizer.job_id, "completed")
    return tokenizer.tokenizer_id


def test_a_corpus_that_is_not_here_is_taken_where_there_is_a_data_bank(
    database: Database,
) -> None:
    spec = TrainSpec(corpus_file_id="remote-1", corpus_sha256="0" * 64)

    with pytest.raises(CorpusNotFound):
        runs.create(database, spec, queue="trainer")
    run = runs.create(database, spec, queue="trainer", remote_corpora=True)
    assert uses.corpora_in_use(database) == {"remote-1"}
    end(database, run.run_id, "completed")
    assert uses.corpora_in_use(database) == frozenset()


@pytest.mark.parametrize(
    ("kind", "named", "in_use"),
    [
        (JobKind.EVALUATE, "remote-1", {"remote-1"}),
        (JobKind.EVALUATE, None, {"remote-1"}),  # as the version before queues it
        (JobKind.GENERATE, None, set()),
        (JobKind.CHAT, None, set()),
    ],
)
def test_a_finished_run_s_corpus_is_in_use_while_the_run_is_evaluated(
    database: Database, kind: JobKind, named: str | None, in_use: set[str]
) -> None:
    spec = TrainSpec(corpus_file_id="remote-1", corpus_sha256="0" * 64)
    run_id = runs.create(database, spec, queue="trainer", remote_corpora=True).run_id
    end(database, run_id, "completed")
    request = requests.create(
        database, kind, run_id, "{}", queue="q", user_id=0, corpus_file_id=named
    ).request_id

    assert uses.corpora_in_use(database) == in_use
    end(database, request, "completed")
    assert uses.corpora_in_use(database) == frozenset()


def test_a_model_is_in_use_while_a_request_to_it_or_a_run_from_it_is_unfinished(
    database: Database, claim: Claim, another_run: AnotherRun
) -> None:
    lease.finish(database, claim, "completed")
    assert uses.models_in_use(database) == frozenset()
    tuned = another_run(pretrained_run_id="run-base")
    request = ask(database, claim.job_id)

    assert uses.models_in_use(database) == {"run-base", claim.job_id}
    end(database, tuned, "completed")
    end(database, request, "completed")

    assert uses.models_in_use(database) == frozenset()


def forget_tokenizer(database: Database, tokenizer_id: str, *, min_seconds: float) -> bool:
    with uses.forgotten_tokenizer(database, tokenizer_id, min_seconds=min_seconds) as is_forgotten:
        return is_forgotten


def test_a_tokenizer_without_use_for_long_enough_is_found_and_can_be_forgotten(
    database: Database, tokenizer_id: str, elapse: Elapse
) -> None:
    assert uses.unused_tokenizers(database, min_seconds=DAY) == []
    elapse(DAY + 1)

    (unused,) = uses.unused_tokenizers(database, min_seconds=DAY)
    assert unused.tokenizer_id == tokenizer_id
    assert DAY <= unused.unused_seconds < DAY + 60
    assert forget_tokenizer(database, tokenizer_id, min_seconds=DAY)

    with pytest.raises(TokenizerNotFound):
        tokenizers.get(database, tokenizer_id)
    assert not forget_tokenizer(database, tokenizer_id, min_seconds=DAY)


@pytest.mark.parametrize("status", ["queued", "running", "completed"])
def test_a_tokenizer_that_a_living_or_finished_run_names_is_in_use_for_ever(
    database: Database, tokenizer_id: str, another_run: AnotherRun, elapse: Elapse, status: str
) -> None:
    run_id = another_run(tokenizer_id=tokenizer_id)
    if status == "running":
        lease.claim(database, run_id, "worker:1", lease_seconds=60)
    elif status == "completed":
        end(database, run_id, "completed")
    elapse(1_000 * DAY)

    assert uses.unused_tokenizers(database, min_seconds=DAY) == []
    assert not forget_tokenizer(database, tokenizer_id, min_seconds=DAY)


def test_a_run_of_a_tokenizer_that_is_gone_is_not_queued(
    database: Database, tokenizer_id: str, another_run: AnotherRun
) -> None:
    assert forget_tokenizer(database, tokenizer_id, min_seconds=0)

    with pytest.raises(TokenizerNotFound, match=tokenizer_id):
        another_run(tokenizer_id=tokenizer_id)


def test_a_tokenizer_is_not_deleted_under_a_run_that_is_being_queued(
    database: Database, tokenizer_id: str
) -> None:
    deleted: list[bool] = []

    def delete() -> None:
        deleted.append(forget_tokenizer(database, tokenizer_id, min_seconds=0))

    with database.write() as connection:
        jobs.enqueue(
            connection,
            job_id="run-new",
            kind=JobKind.TRAIN,
            spec="{}",
            queue="trainer",
            user_id=0,
            tokenizer_id=tokenizer_id,
        )
        deletion = threading.Thread(target=delete)
        deletion.start()
        time.sleep(0.3)  # it waits for the transaction
    deletion.join(20)

    assert deleted == [False]


def test_a_failed_run_counts_as_use_at_the_time_of_its_end_alone(
    database: Database, tokenizer_id: str, another_run: AnotherRun, elapse: Elapse
) -> None:
    elapse(2 * DAY)
    end(database, another_run(tokenizer_id=tokenizer_id), "failed")
    recently = uses.unused_tokenizers(database, min_seconds=DAY)
    elapse(DAY + 1)

    (later,) = uses.unused_tokenizers(database, min_seconds=DAY)
    assert recently == []
    assert DAY <= later.unused_seconds < DAY + 60


def test_a_tokenizer_that_is_not_finished_is_left_alone(database: Database, elapse: Elapse) -> None:
    spec = TokenizerSpec(method="bpe", vocab_size=300, corpus_path="a", corpus_sha256="0" * 64)
    tokenizers.create(database, spec, queue="trainer.light")
    elapse(1_000 * DAY)

    assert uses.unused_tokenizers(database, min_seconds=0) == []


def test_a_run_whose_tokenizer_was_deleted_after_its_end_is_not_resumed(
    database: Database, another_run: AnotherRun, tokenizer_id: str
) -> None:
    run_id = another_run(tokenizer_id=tokenizer_id)
    lease.request_cancel(database, run_id)
    assert forget_tokenizer(database, tokenizer_id, min_seconds=0)

    with pytest.raises(TokenizerNotFound, match=tokenizer_id):
        pauses.resume(database, run_id)

    assert runs.get(database, run_id).status is Status.CANCELLED
