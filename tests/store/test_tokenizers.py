"""Tokenizers and their names."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from trainer_app.core.spec import TokenizerSpec
from trainer_app.errors import Conflict, CorpusNotFound, FieldError, TokenizerNotFound
from trainer_app.store import lease, tokenizers
from trainer_app.store.database import Database
from trainer_app.store.idempotency import IdempotencyKey
from trainer_app.store.lease import JobKind, Status
from trainer_app.store.tables import JobRow
from trainer_app.store.tokenizers import Tokenizer

_SPEC = TokenizerSpec(
    method="bpe",
    vocab_size=300,
    corpus_path="a.txt",
    corpus_sha256="0" * 64,
    tokenizer_id="english",
)


def _create(database: Database, spec: TokenizerSpec = _SPEC) -> Tokenizer:
    return tokenizers.create(database, spec, queue="trainer.light")


def _finish(database: Database, job_id: str, status: str, result: str | None = None) -> None:
    claim = lease.claim(database, job_id, "worker:1", lease_seconds=60)
    assert claim is not None
    assert claim.kind is JobKind.TOKENIZER
    lease.finish(database, claim, status, result=result, error_code=None, message="the end")


def test_a_new_tokenizer_is_queued_under_the_name_that_was_asked(database: Database) -> None:
    tokenizer = _create(database)
    assert tokenizer == tokenizers.get(database, "english")
    assert (tokenizer.tokenizer_id, tokenizer.status) == ("english", Status.QUEUED)
    assert (tokenizer.method, tokenizer.vocab_size, tokenizer.coverage) == ("bpe", None, None)
    assert tokenizer.spec == _SPEC


def test_a_tokenizer_without_a_name_has_that_of_its_job(database: Database) -> None:
    tokenizer = _create(database, replace(_SPEC, tokenizer_id=""))
    assert tokenizer.tokenizer_id == tokenizer.job_id
    assert tokenizer.job_id.startswith("tok-")


def test_a_finished_tokenizer_shows_what_was_measured(database: Database) -> None:
    statistics = {
        "vocab_size": 300,
        "token_count": 1_000,
        "coverage": 1.0,
        "oov_rate": 0.0,
        "char_coverage": 0.99,
        "bytes_per_token": 2.5,
    }
    result = json.dumps(statistics | {"seconds": 1.0})
    _finish(database, _create(database).job_id, "completed", result)
    tokenizer = tokenizers.get(database, "english")
    assert tokenizer.status is Status.COMPLETED
    assert {name: getattr(tokenizer, name) for name in statistics} == statistics


def test_an_unknown_tokenizer_is_not_found(database: Database) -> None:
    with pytest.raises(TokenizerNotFound, match="unknown"):
        tokenizers.get(database, "unknown")


def test_a_corpus_that_is_gone_is_not_found(database: Database) -> None:
    with pytest.raises(CorpusNotFound):
        _create(database, replace(_SPEC, corpus_path=None, corpus_file_id="f" * 64))
    assert tokenizers.list_(database).items == []


def test_of_32_tokenizers_of_one_name_at_once_one_is_accepted(database: Database) -> None:
    together = threading.Barrier(32)

    def post(_number: int) -> bool:
        together.wait(10)
        try:
            _create(database)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(32) as pool:
        assert sum(pool.map(post, range(32))) == 1
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(JobRow)) == 1


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_the_name_of_one_that_failed_is_free(database: Database, status: str) -> None:
    failed = _create(database)
    _finish(database, failed.job_id, status)
    again = _create(database, replace(_SPEC, method="char"))
    assert again.job_id != failed.job_id
    assert (again.status, again.method, again.message) == (Status.QUEUED, "char", "")
    with pytest.raises(Conflict, match="english"):
        _create(database)


def test_of_many_that_replace_a_failed_one_at_once_one_does(database: Database) -> None:
    _finish(database, _create(database).job_id, "failed")
    together = threading.Barrier(8)

    def post(_number: int) -> bool:
        together.wait(10)
        try:
            _create(database)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(post, range(8))) == 1


def test_the_name_of_one_that_completed_is_taken(database: Database) -> None:
    _finish(database, _create(database).job_id, "completed", "{}")
    with pytest.raises(Conflict):
        _create(database)


def test_tokenizers_are_listed_newest_first_a_page_at_a_time(database: Database) -> None:
    for name in "abc":
        _create(database, replace(_SPEC, tokenizer_id=name))
    page = tokenizers.list_(database, limit=2)
    assert [tokenizer.tokenizer_id for tokenizer in page.items] == ["c", "b"]
    assert page.has_more
    rest = tokenizers.list_(database, limit=2, after=page.next)
    assert [tokenizer.tokenizer_id for tokenizer in rest.items] == ["a"]


def test_the_same_key_gives_the_same_tokenizer(database: Database) -> None:
    key = IdempotencyKey(endpoint="POST /tokenizers/train", key="key", body_sha256="a" * 64)
    first = tokenizers.create(database, _SPEC, queue="trainer.light", idempotency=key)
    again = tokenizers.create(database, _SPEC, queue="trainer.light", idempotency=key)
    assert first == again
    other = replace(key, body_sha256="b" * 64)
    with pytest.raises(FieldError):
        tokenizers.create(database, _SPEC, queue="trainer.light", idempotency=other)
